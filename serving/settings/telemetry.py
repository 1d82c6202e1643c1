"""Settings of telemetry: logs, metrics and traces."""

from typing import Literal

from pydantic import Field

from serving.settings.base import Port, SettingsGroup


class TelemetrySettings(SettingsGroup):
    """Logs, metrics and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log records."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """Format of log records. auto: console on a terminal, otherwise JSON."""
    tenant_labels: int = Field(100, ge=0, le=10_000)
    """Maximum number of tenants with a separate metric label; the rest are counted as other."""
    rank_metrics_port: Port = 0
    """Port on which each rank serves its engine's metrics (plain HTTP, no key). If several ranks
    share a node, each uses the next free port; the router's /metrics/targets lists them. If 0, the
    metrics are not served."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://")
    """OpenTelemetry collector that routers and ranks send traces to, e.g. http://collector:4317.
    Null means no traces."""
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """OTLP transport. For http/protobuf the endpoint is the whole URL, …:4318/v1/traces."""
    trace_ratio: float = Field(1.0, ge=0, le=1)
    """Fraction of requests that are traced if the client's traceparent does not decide."""
