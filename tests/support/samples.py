"""Values of this package's metrics, as in a scrape."""

from serving.telemetry.metrics import REGISTRY


def sample(name: str, **labels: str) -> float:
    """Return a sample by its exported name, including ``_total``; 0 if it does not exist yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
