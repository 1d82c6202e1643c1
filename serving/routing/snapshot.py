"""What the router knows of its fleet at one moment, frozen: the input of every routing decision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import sub
from typing import Protocol


class MemberState(StrEnum):
    """State of a group; the transitions are one table in ``serving.fleet.membership``."""

    JOINING = "joining"
    """Some ranks of the epoch are missing or have not reported themselves healthy yet."""
    READY = "ready"
    """All ranks are there and healthy: work goes here."""
    DRAINING = "draining"
    """Takes no new work, goes on with what it has."""
    FENCED = "fenced"
    """A rank was lost, failed or stalled: no work goes here and what was here is failed."""
    GONE = "gone"
    """Nothing is left of it; only the history shows it."""


@dataclass(frozen=True, slots=True)
class LayerTokens:
    """What a rank's experts of one MoE layer computed."""

    layer: str
    """As vLLM calls it, e.g. ``model.layers.1.mlp.experts``."""
    tokens: tuple[int, ...]
    """In the order of the rank's ``local_expert_ids``."""


class CountedLayer(Protocol):
    """``LayerTokens``, or the message of the link, which has the same fields."""

    @property
    def layer(self) -> str:
        """Its name."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """By local expert."""
        ...


@dataclass(frozen=True, slots=True)
class RecentExperts:
    """Cumulative counts of now and of a while ago; they are subtracted when somebody looks.

    Reports come twice a second from every rank, and somebody looks a few times a minute.
    """

    newest: Sequence[CountedLayer] = ()
    base: Sequence[CountedLayer] = ()

    def layers(self) -> Iterator[LayerTokens]:
        """Yield what was computed in between, by layer.

        Counts that do not follow the old ones, as after a restart, stand for themselves.
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
    """A rank's last report. Counters are cumulative since its engine started."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage: float = 0.0
    """Share of KV-cache blocks in use, 0 to 1."""
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    engine_steps_total: int = 0
    since_last_step: float = 0.0
    """Seconds."""
    step_seconds: float = 0.0
    """Mean duration of a recent engine step, in seconds."""
    busy_seconds_total: float = 0.0
    """Spent in steps."""
    expert_tokens: tuple[int, ...] = ()
    """Tokens for each of the rank's local experts, summed over layers; [local expert]."""
    mtp_draft_steps: int = 0
    mtp_proposed_tokens: int = 0
    mtp_accepted_tokens: int = 0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RankSnapshot:
    """One rank as the router sees it."""

    group_id: str
    epoch: str
    rank: int
    healthy: bool
    """Its last report says so; false before the first report."""
    health_reason: str = ""
    draining: bool = False
    inflight_requests: int = 0
    """Requests of this router on the rank."""
    outstanding_tokens: int = 0
    """Prompt and expected output tokens still to compute for this router's requests."""
    load: RankLoad = RankLoad()
    node: str = ""
    pid: int = 0
    engine_version: str = ""
    serving_version: str = ""
    tensor_parallel_size: int = 1
    max_model_len: int = 0
    """Longest prompt plus output in tokens; 0 = not told."""
    max_num_seqs: int = 0
    kv_blocks: int = 0
    kv_block_size: int = 0
    local_expert_ids: tuple[int, ...] = ()
    recent_experts: RecentExperts = RecentExperts()
    """What its experts computed in the last half minute to minute."""
    metrics_address: str = ""
    """Where it shows its engine's own metrics, host:port; empty: nowhere."""
    reported_at: float = 0.0
    """When its last report came; seconds since the Unix epoch, 0 = none came."""
    round_trip: float | None = None
    """Seconds from Ping to Pong, last seen; none before the first Pong."""
    joined_at: float = 0.0
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One group: all ranks of one epoch."""

    group_id: str
    epoch: str
    state: MemberState
    reason: str
    """Why it is in this state, in words."""
    since: float
    """When the state began; seconds since the Unix epoch."""
    world_size: int
    total_experts: int = 0
    """Routed experts of one MoE layer in the whole model; 0 = not told."""
    ranks: tuple[RankSnapshot, ...] = ()
    """Ranks that are joined, ascending."""
    app: str = ""
    """What deployed it, Hello.app; empty: not told."""


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """All groups at one moment."""

    router_id: str
    groups: tuple[GroupSnapshot, ...] = ()
    """Living groups by id."""
    history: tuple[GroupSnapshot, ...] = ()
    """Groups that are gone, newest first."""

    @property
    def ready(self) -> bool:
        """Whether any group can take work."""
        return any(group.state is MemberState.READY for group in self.groups)

    @property
    def inflight_requests(self) -> int:
        """Requests of this router on all ranks."""
        return sum(rank.inflight_requests for group in self.groups for rank in group.ranks)
