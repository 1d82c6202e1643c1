"""The autoscaler's metrics, by their exported names."""

from serving.telemetry import autoscaler_metrics as metrics


def sample(name: str, **labels: str) -> float:
    """Return the value of ``moe_autoscaler_NAME``; 0 if the series does not exist yet."""
    found = metrics.AUTOSCALER_REGISTRY.get_sample_value(f"moe_autoscaler_{name}", labels)
    return found or 0.0
