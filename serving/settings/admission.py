"""Settings of admission: the queue, default quotas, and Redis for quotas that routers share."""

from typing import Literal

from pydantic import Field

from serving.settings.base import Seconds, SettingsGroup


class AdmissionSettings(SettingsGroup):
    """Limits of the admission queue, and default quotas of tenants (deploy/docs/admission.md)."""

    queue_requests: int = Field(1024, ge=1)
    """Maximum number of waiting requests; further requests are rejected."""
    queue_tokens: int = Field(2_000_000, ge=1)
    """Maximum number of tokens, prompt plus expected output, of all waiting requests."""
    ageing: Seconds = 15.0
    """Waiting time after which a request rises by one priority class, seconds."""
    max_wait: Seconds | None = 60.0
    """Maximum predicted wait of interactive and standard requests, seconds; a request with a longer
    predicted wait is rejected immediately. If null, a request is rejected only if it would wait
    past its deadline."""
    rate_window: Seconds = 30.0
    """Period over which the fleet's throughput, the basis of predicted waits, is averaged,
    seconds."""
    recheck_interval: Seconds = 0.1
    """Interval at which the head of the queue is retried when no event triggers it, seconds."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Default requests-per-minute limit for tenants without one in the key file. Null means
    unlimited."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Default limit on prompt plus generated tokens per minute for tenants without one in the key
    file. Null means unlimited."""
    concurrent_streams: int | None = Field(None, ge=1)
    """Default limit on running and waiting requests for tenants without one in the key file. Null
    means unlimited."""
    redis_url: str | None = Field(None, pattern=r"^(rediss?|unix)://")
    """Redis server through which routers share their quota counts, e.g. redis://host:6379/0. If
    null, each router counts separately."""
    redis_password_file: str | None = None
    """File with the Redis password; keep it out of the URL. Null means no password."""
    redis_timeout: Seconds = 0.25
    """Timeout of a Redis call, seconds."""
    redis_down: Literal["open", "closed"] = "open"
    """Behaviour while Redis does not respond. open: each router counts separately. closed: requests
    of tenants with limits are rejected."""
