"""Settings of routing: load limits of a rank, and the weights of its scores."""

from pydantic import Field

from serving.settings.base import Seconds, SettingsGroup


class RoutingWeights(SettingsGroup):
    """Weights of the scorers that choose a rank. Each scorer returns 0 to 1; weight 0 disables
    it.
    """

    load: float = Field(1.0, ge=0)
    """Prefers ranks with few outstanding tokens from this router."""
    kv_room: float = Field(0.25, ge=0)
    """Prefers ranks that report much free KV cache; the report includes requests of other
    routers."""
    prefix: float = Field(2.0, ge=0)
    """Prefers ranks whose prefix cache contains much of the prompt."""
    session: float = Field(4.0, ge=0)
    """Prefers the rank that served the session last. The default exceeds the sum of the other
    weights, so sessions stay on their rank up to the load bound."""
    balance: float = Field(0.25, ge=0)
    """Avoids adding load to the busiest rank of a group."""
    adapter: float = Field(3.0, ge=0)
    """Rank that holds the request's LoRA adapter, or is one of the adapter's replicas."""


class RoutingSettings(SettingsGroup):
    """How the rank for a request is chosen (deploy/docs/routing.md)."""

    weights: RoutingWeights = RoutingWeights()
    kv_headroom: float = Field(1.0, gt=0)
    """Maximum number of outstanding tokens of a rank from this router, as a fraction of its KV
    cache."""
    queue_allowance: float = Field(0.25, ge=0)
    """Number of requests that a rank may hold from this router beyond its max_num_seqs, as a
    fraction of max_num_seqs."""
    engine_queue: float = Field(0.5, ge=0)
    """Queue length of a rank's engine, over all routers, at which the rank gets no further
    requests, as a fraction of its max_num_seqs; at least one request."""
    session_load_bound: float = Field(1.5, ge=1)
    """Load bound of prefix and session affinity: a rank's outstanding tokens as a multiple of the
    mean of all candidates. Above it, affinity is ignored."""
    affinity_slack: int = Field(2048, ge=0)
    """Number of outstanding tokens added to the load bound, because the mean of a nearly idle fleet
    is close to zero."""
    adapter_replicas: int = Field(4, ge=1, le=64)
    """Ranks among which an adapter's requests spread while they are within the load bound."""
    sessions: int = Field(65536, ge=0)
    """Maximum number of remembered sessions; the least recently used one is dropped first."""
    session_ttl: Seconds = 1800.0
    """Time without a request after which a session is forgotten, seconds."""
    prefix_blocks: int = Field(262_144, ge=1)
    """Maximum number of reported KV-cache blocks that are kept for one rank."""
    history_blocks: int = Field(4096, ge=1)
    """Number of most recent prompt blocks that are assumed to be cached on a rank that does not
    report its cache."""
    history_trust: float = Field(0.5, ge=0, le=1)
    """Weight of an assumed match relative to a reported one. If 0, nothing is assumed."""
