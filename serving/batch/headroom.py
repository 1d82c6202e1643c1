"""How many lines may run on each rank beside other requests. Pure: a snapshot in, numbers out.

All ranks of a group step together, so the load of a group decides for all its ranks:

- Without other requests in the group, a rank takes lines up to ``max_num_seqs``.
- Beside other requests, the longest permitted step decides: ``itl_slo``, or the step that the other
  requests alone would have, plus ``max_step_growth``. ``StepModel`` says how many sequences fit.
- A rank whose engine has a queue, or whose KV cache is used up to ``kv_reserve``, gets no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankId, RankSnapshot
from serving.settings import BatchSettings

_UNKNOWN_SEQUENCES = 64
"""Sequences of a rank that does not report its maximum."""
_DECAY = 0.98
"""Weight of a report relative to the next one; reports come twice per second."""
_ROUNDING = 1e-6
_MIN_SPREAD = 0.25
"""Variance of the number of sequences below which a slope is not computed."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """Duration of a group's steps by number of sequences: a line through the recent reports.

    Least squares with exponentially decaying weights: ``seconds = fixed + each * sequences``.
    """

    weight: float = 0.0
    n: float = 0.0
    n2: float = 0.0
    t: float = 0.0
    nt: float = 0.0

    def after(self, sequences: int, seconds: float) -> "StepModel":
        """Return the model with one more report."""
        return StepModel(
            self.weight * _DECAY + 1,
            self.n * _DECAY + sequences,
            self.n2 * _DECAY + sequences * sequences,
            self.t * _DECAY + seconds,
            self.nt * _DECAY + sequences * seconds,
        )

    @property
    def coefficients(self) -> tuple[float, float] | None:
        """``fixed`` and ``each``, seconds; None: nothing is known.

        If the reports do not tell them apart, all of the duration is ascribed to the sequences,
        which overestimates the cost of another one.
        """
        if not self.weight or not self.n:
            return None
        mean_n, mean_t = self.n / self.weight, self.t / self.weight
        spread = self.n2 / self.weight - mean_n**2
        if spread < _MIN_SPREAD:
            return 0.0, mean_t / mean_n
        each = (self.nt / self.weight - mean_n * mean_t) / spread
        each = min(max(each, 0.0), mean_t / mean_n)
        return mean_t - each * mean_n, each

    def sequences_within(self, seconds: float) -> float:
        """Return the number of sequences with which a step takes ``seconds``; may be infinite."""
        known = self.coefficients
        if known is None:
            return 0.0
        fixed, each = known
        if each <= 0.0:
            return inf if fixed <= seconds else 0.0
        return max((seconds - fixed) / each, 0.0)

    def seconds_with(self, sequences: int) -> float:
        """Return the duration of a step with this many sequences, seconds; 0: unknown."""
        fixed, each = self.coefficients or (0.0, 0.0)
        return fixed + each * sequences


@dataclass(frozen=True, slots=True)
class RankUse:
    """What this router knows about a rank beyond its reports."""

    lines: int = 0
    """Lines of this router on the rank."""
    recent_peak: int = 0
    """Most requests that this router had on the rank since before the rank's last report."""


@dataclass(frozen=True, slots=True)
class Room:
    """Result for one rank."""

    others: int
    """Sequences of other requests on the rank."""
    lines: int
    """Lines that may run on the rank, those that run included."""
    more: bool = True
    """Whether another line may start."""


def rooms(
    fleet: FleetSnapshot,
    uses: Mapping[RankId, RankUse],
    models: Mapping[tuple[str, str], StepModel],
    settings: BatchSettings,
    *,
    factor: float = 1.0,
) -> dict[RankId, Room]:
    """Return the room for lines on every rank of the ready groups.

    Args:
        fleet: The fleet now.
        uses: What this router has on the ranks.
        models: By group and epoch.
        settings: Objectives and reserves.
        factor: Fraction of the room beside other requests that is used, 0 to 1.
    """
    found = {}
    for group in fleet.groups:
        if group.state is MemberState.READY:
            model = models.get((group.group_id, group.epoch), StepModel())
            found.update(_group_rooms(group, uses, model, settings, factor))
    return found


def _group_rooms(
    group: GroupSnapshot,
    uses: Mapping[RankId, RankUse],
    model: StepModel,
    settings: BatchSettings,
    factor: float,
) -> dict[RankId, Room]:
    others = {
        rank.rank_id: _others(rank, uses.get(rank.rank_id, RankUse())) for rank in group.ranks
    }
    busiest = max(others.values(), default=0)
    found = {}
    for rank in group.ranks:
        if not rank.healthy or rank.draining:
            found[rank.rank_id] = Room(others[rank.rank_id], 0, more=False)
            continue
        most = float(rank.max_num_seqs or _UNKNOWN_SEQUENCES)
        if busiest:
            if settings.itl_slo is not None:
                longest = settings.itl_slo
            else:
                longest = (1 + settings.max_step_growth) * model.seconds_with(busiest)
            most = min(most, model.sequences_within(longest))
        left = max(int(most + _ROUNDING) - others[rank.rank_id], 0)
        room = Room(others[rank.rank_id], int(left * factor) if busiest else left)
        found[rank.rank_id] = _within_memory(room, rank, uses, settings)
    return found


def _others(rank: RankSnapshot, use: RankUse) -> int:
    """Return the sequences on a rank that are no lines of this router.

    Those of other routers are known from the rank's report, which may still count requests of this
    router that have ended.
    """
    reported = rank.load.running_requests + rank.load.waiting_requests
    elsewhere = max(reported - max(use.recent_peak, rank.inflight_requests), 0)
    return max(rank.inflight_requests - use.lines, 0) + elsewhere


def _within_memory(
    room: Room, rank: RankSnapshot, uses: Mapping[RankId, RankUse], settings: BatchSettings
) -> Room:
    used = rank.load.kv_usage
    lines = uses.get(rank.rank_id, RankUse()).lines
    if used >= 1 - settings.kv_reserve / 2:
        return Room(room.others, min(room.lines, lines * 3 // 4), more=False)
    if used >= 1 - settings.kv_reserve or rank.load.waiting_requests:
        return replace(room, more=False)
    return room
