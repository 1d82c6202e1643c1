"""Settings of routing: what a rank may hold, and how its score is weighted."""

from pydantic import Field

from serving.settings.base import Seconds, SettingsGroup


class RoutingWeights(SettingsGroup):
    """Weights of the scorers that choose a rank. Each scorer returns 0 to 1; weight 0 disables
    it.
    """

    load: float = Field(1.0, ge=0)
    """Few outstanding tokens from this router."""
    kv_room: float = Field(0.25, ge=0)
    """Free KV cache as reported by the rank, which includes requests of other routers."""
    prefix: float = Field(2.0, ge=0)
    """Share of the prompt that is in the rank's prefix cache."""
    session: float = Field(4.0, ge=0)
    """Rank that served the session last. The default exceeds the sum of the others, so sessions
    stay on their rank up to the load bound."""
    balance: float = Field(0.25, ge=0)
    """Avoid adding load to the busiest rank of a group."""


class RoutingSettings(SettingsGroup):
    """How the rank for a request is chosen (deploy/docs/routing.md)."""

    weights: RoutingWeights = RoutingWeights()
    kv_headroom: float = Field(1.0, gt=0)
    """Maximum outstanding tokens of a rank from this router, as a fraction of its KV cache."""
    queue_allowance: float = Field(0.25, ge=0)
    """Requests that a rank may hold from this router beyond its max_num_seqs, as a fraction of
    max_num_seqs."""
    engine_queue: float = Field(0.5, ge=0)
    """Maximum number of requests, of all routers, that wait in a rank's engine before the rank gets
    no more, as a fraction of its max_num_seqs; at least one."""
    session_load_bound: float = Field(1.5, ge=1)
    """Load bound of prefix and session affinity: a rank's outstanding tokens as a multiple of the
    mean of all candidates. Above it, affinity does not count."""
    affinity_slack: int = Field(2048, ge=0)
    """Outstanding tokens added to that bound, because the mean of a nearly idle fleet is close to
    zero."""
    sessions: int = Field(65536, ge=0)
    """Maximum number of sessions that are remembered; the least recently used is dropped first."""
    session_ttl: Seconds = 1800.0
    """Time without a request after which a session is forgotten, seconds."""
    prefix_blocks: int = Field(262_144, ge=1)
    """Maximum number of reported KV-cache blocks that are kept for one rank."""
    history_blocks: int = Field(4096, ge=1)
    """Number of most recent prompt blocks that are assumed to be cached on a rank that does not
    report its cache."""
    history_trust: float = Field(0.5, ge=0, le=1)
    """Value of an assumed match relative to a reported one. 0: assume nothing."""
