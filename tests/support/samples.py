"""Values of this package's metrics, as a scrape would show them."""

from serving.telemetry.metrics import REGISTRY


def sample(name: str, **labels: str) -> float:
    """Return a sample by its exported name, ``_total`` included; 0 if there is none yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
