"""Frozen snapshots of the fleet as seen by the router: for status pages, tests and simulation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import sub
from typing import NamedTuple, Protocol

from typing_extensions import override


class RankId(NamedTuple):
    """Identifies one rank of one epoch of one group."""

    group_id: str
    epoch: str
    rank: int

    @property
    def group(self) -> tuple[str, str]:
        """Group id and epoch."""
        return self.group_id, self.epoch

    @override
    def __str__(self) -> str:
        return f"rank {self.rank} of group {self.group_id} (epoch {self.epoch})"


class MemberState(StrEnum):
    """State of a group; ``serving.fleet.group.TRANSITIONS`` contains the transitions."""

    JOINING = "joining"
    """Some ranks of the epoch have not joined, or are not proven healthy yet."""
    READY = "ready"
    """All ranks are joined and healthy: requests are routed here."""
    DRAINING = "draining"
    """The group accepts no new requests; running requests continue."""
    FENCED = "fenced"
    """A rank was lost, failed or stalled: its requests failed, and no new ones are routed here."""
    GONE = "gone"
    """All ranks left, or a newer epoch replaced the group; kept only in the history."""


@dataclass(frozen=True, slots=True)
class LayerTokens:
    """Tokens computed by a rank's experts of one MoE layer."""

    layer: str
    """Name of the layer in vLLM, e.g. ``model.layers.1.mlp.experts``."""
    tokens: tuple[int, ...]
    """[local experts], in the order of the rank's ``local_expert_ids``."""


class CountedLayer(Protocol):
    """A ``LayerTokens``, or the link message with the same fields."""

    @property
    def layer(self) -> str:
        """Name of the layer in vLLM."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Cumulative tokens, [local experts]."""
        ...


@dataclass(frozen=True, slots=True)
class RecentExperts:
    """Two sets of cumulative counts, whose difference is computed only when read.

    Every rank reports twice per second, but the difference is read a few times per minute.
    """

    newest: Sequence[CountedLayer] = ()
    base: Sequence[CountedLayer] = ()
    """Counts from 30 to 60 s before ``newest``; if empty, the counts cover the engine's whole
    run."""

    def layers(self) -> Iterator[LayerTokens]:
        """Yield the tokens computed between the two counts, by layer.

        If a count is below its base, as after an engine restart, the base is ignored.
        """
        old = {layer.layer: layer.tokens for layer in self.base}
        for layer in self.newest:
            tokens = tuple(layer.tokens)
            before = old.get(layer.layer, ())
            if len(before) == len(tokens):
                since = tuple(map(sub, tokens, before))
                tokens = tokens if min(since, default=0) < 0 else since
            yield LayerTokens(layer.layer, tokens)


@dataclass(frozen=True, slots=True)
class RankLoad:
    """A rank's last load report. Counters are cumulative since the engine's start."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage: float = 0.0
    """Fraction of KV-cache blocks in use, 0 to 1."""
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    engine_steps_total: int = 0
    since_last_step: float = 0.0
    """Time since the last engine step ended, seconds."""
    step_seconds: float = 0.0
    """Mean duration of recent engine steps, seconds."""
    busy_seconds_total: float = 0.0
    """Time spent in engine steps, seconds."""
    expert_tokens: tuple[int, ...] = ()
    """Tokens of each local expert, summed over the layers; [local experts]."""
    mtp_proposed_tokens: int = 0
    mtp_accepted_tokens: int = 0
    resident_bytes: int = 0
    adapters: tuple[str, ...] = ()
    """Keys of the LoRA adapters that the rank holds, the least recently used one first."""
    adapter_requests_total: int = 0
    adapter_loads_total: int = 0
    adapter_evictions_total: int = 0
    adapter_failures_total: int = 0


@dataclass(frozen=True, slots=True)
class RankSnapshot:
    """The router's view of one rank."""

    group_id: str
    epoch: str
    rank: int
    healthy: bool
    """Whether the rank is healthy according to its last report; false before the first report."""
    health_reason: str = ""
    draining: bool = False
    inflight_requests: int = 0
    """Number of this router's requests on the rank."""
    outstanding_tokens: int = 0
    """Number of prompt tokens plus expected output tokens still to compute for this router's
    requests."""
    load: RankLoad = RankLoad()
    node: str = ""
    pid: int = 0
    engine_version: str = ""
    serving_version: str = ""
    tensor_parallel_size: int = 1
    max_model_len: int = 0
    """Maximum number of tokens in prompt plus output; 0 if unknown."""
    max_num_seqs: int = 0
    """Maximum number of concurrent sequences; 0 if unknown."""
    kv_blocks: int = 0
    """Number of KV-cache blocks; 0 if unknown."""
    kv_block_size: int = 0
    """Number of tokens per KV-cache block; 0 if unknown."""
    local_expert_ids: tuple[int, ...] = ()
    recent_experts: RecentExperts = RecentExperts()
    """Tokens computed by the local experts in the last 30 to 60 s."""
    adapter_slots: int = 0
    """LoRA adapters that the rank can hold; 0: it runs none."""
    metrics_address: str = ""
    """host:port of the engine's metrics page; empty if there is none."""
    reported_at: float = 0.0
    """Time of the last report, seconds since the Unix epoch; 0 before the first report."""
    round_trip: float | None = None
    """Time from the last Ping to its Pong, seconds. None before the first Pong."""
    joined_at: float = 0.0
    """Time of joining, seconds since the Unix epoch."""
    rank_id: RankId = field(init=False, repr=False, compare=False)
    """``group_id``, ``epoch`` and ``rank`` as one key."""

    def __post_init__(self) -> None:
        """Build the key once, because scoring reads it for every candidate."""
        object.__setattr__(self, "rank_id", RankId(self.group_id, self.epoch, self.rank))


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """The state of one group, which consists of the ranks of one epoch."""

    group_id: str
    epoch: str
    state: MemberState
    reason: str
    """Reason for the state, as a sentence."""
    since: float
    """Time at which the state began, seconds since the Unix epoch."""
    world_size: int
    """Number of ranks in the group, joined or not."""
    total_experts: int = 0
    """Number of routed experts per MoE layer of the whole model; 0 if unknown."""
    ranks: tuple[RankSnapshot, ...] = ()
    """Joined ranks, in ascending order."""
    app: str = ""
    """Ray Serve application that deployed the group (``Hello.app``); empty if unknown."""
    model: str = ""
    """Model that the group serves."""
    pool: str = ""
    """Pool of the model that the group belongs to."""


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """All groups at one point in time."""

    router_id: str
    groups: tuple[GroupSnapshot, ...] = ()
    """Groups with joined ranks, ordered by id."""
    history: tuple[GroupSnapshot, ...] = ()
    """Groups that are gone, most recent first."""

    @property
    def ready(self) -> bool:
        """Whether any group accepts requests."""
        return any(group.state is MemberState.READY for group in self.groups)

    @property
    def inflight_requests(self) -> int:
        """Number of this router's requests on all ranks."""
        return sum(rank.inflight_requests for group in self.groups for rank in group.ranks)
