"""How many lines may run on each rank alongside other requests. Pure.

All ranks of a group step together, so the load of a group decides for all its ranks:

- Without other requests in the group, a rank takes lines up to ``max_num_seqs``, and up to a step
  of ``max_idle_step``.
- Alongside other requests, the permitted step decides: ``itl_slo``, or the step that the other
  requests alone have at their recent peak, plus ``max_step_growth``. ``StepModel`` says how many
  sequences fit into it.
- A rank whose engine has a queue, or whose KV cache is used up to ``kv_reserve``, gets no more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf

from serving.batch.step_model import UNKNOWN, StepModel
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankId, RankSnapshot
from serving.settings import BatchSettings

_UNKNOWN_SEQUENCES = 64
"""Sequences of a rank that does not report its maximum."""
_ROUNDING = 1e-6
_PEAK_QUANTILE = 0.9
"""Quantile of the number of other requests that is their recent peak."""


@dataclass(frozen=True, slots=True)
class RankUse:
    """What this router knows about a rank beyond its reports."""

    lines: int = 0
    """Lines of this router on the rank."""
    recent_peak: int = 0
    """Maximum number of this router's requests on the rank since before its last report."""


@dataclass(frozen=True, slots=True)
class Room:
    """Result for one rank."""

    others: int
    """Sequences of other requests on the rank."""
    lines: int
    """Maximum number of lines on the rank; those above it are preempted."""
    starts: int
    """Number of lines on the rank up to which further ones start."""
    beside: bool = False
    """Whether the group has other requests, so that lines must start one at a time."""


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What this router has learned about a group."""

    model: StepModel = UNKNOWN
    peak: float = 0.0
    """Sequences that the busiest rank would have without lines at the recent peak."""


def rooms(
    fleet: FleetSnapshot,
    uses: Mapping[RankId, RankUse],
    groups: Mapping[tuple[str, str], GroupUse],
    settings: BatchSettings,
    *,
    factor: float = 1.0,
    prompt: float = 0.0,
) -> dict[RankId, Room]:
    """Return the room for lines on every rank of the ready groups.

    Args:
        fleet: The fleet now.
        uses: What this router has on the ranks.
        groups: What it has learned, by group and epoch.
        settings: Objectives and reserves.
        factor: Fraction of the room alongside other requests that is used, 0 to 1.
        prompt: Prompt tokens of a line that starts.
    """
    found = {}
    for group in fleet.groups:
        if group.state is MemberState.READY:
            learned = groups.get((group.group_id, group.epoch), GroupUse())
            found.update(_group_rooms(group, uses, learned, settings, factor, prompt))
    return found


def busiest_of(group: GroupSnapshot, uses: Mapping[RankId, RankUse]) -> tuple[int, int]:
    """Return the most other requests, and the most sequences, on a rank of a group."""
    used = [uses.get(rank.rank_id, RankUse()) for rank in group.ranks]
    others = [_others(rank, use) for rank, use in zip(group.ranks, used, strict=True)]
    total = [number + use.lines for number, use in zip(others, used, strict=True)]
    return max(others, default=0), max(total, default=0)


def peak_alone(busy: Collection[tuple[int, int]], model: StepModel) -> float:
    """Return the recent peak of other requests, as it would be without lines.

    Lines lengthen the steps, so that more requests run at a time than would without lines. A peak
    that includes them would permit more lines, which would raise the peak further.

    Args:
        busy: Results of ``busiest_of`` at times with other requests.
        model: Duration of the group's steps.
    """
    if not busy:
        return 0.0
    others = sorted(number for number, _ in busy)
    peak = float(others[int(_PEAK_QUANTILE * (len(others) - 1))])
    times = model.times
    if times is None:
        return peak
    mean = sum(others) / len(busy)
    total = sum(number for _, number in busy) / len(busy)
    return peak * times.alone(mean, total) / mean


def _group_rooms(
    group: GroupSnapshot,
    uses: Mapping[RankId, RankUse],
    learned: GroupUse,
    settings: BatchSettings,
    factor: float,
    prompt: float,
) -> dict[RankId, Room]:
    busiest, total = busiest_of(group, uses)
    longest = _longest_step(busiest, total, learned, settings)
    # A line that starts lengthens one step by its prompt. That step must be permitted, too. It also
    # leaves room for some arrivals, which would otherwise preempt the line.
    fitting = fitting_prompt = inf
    if longest is not None:
        times = learned.model.times
        fitting = 0.0 if times is None else times.sequences_within(longest)
        if times is not None:
            fitting_prompt = times.sequences_within(longest - times.token * prompt)
    found = {}
    for rank in group.ranks:
        others = _others(rank, uses.get(rank.rank_id, RankUse()))
        if not rank.healthy or rank.draining:
            found[rank.rank_id] = Room(others, 0, 0)
            continue
        most = rank.max_num_seqs or _UNKNOWN_SEQUENCES
        lines, starts = (
            max(int(min(most, each) + _ROUNDING) - others, 0) for each in (fitting, fitting_prompt)
        )
        room = Room(others, lines, min(lines, starts))
        if busiest:
            lines = int(lines * factor)
            room = Room(others, lines, min(lines, starts), beside=True)
        found[rank.rank_id] = _within_memory(room, rank, uses, settings)
    return found


def _longest_step(
    busiest: int, total: int, learned: GroupUse, settings: BatchSettings
) -> float | None:
    """Return the permitted duration of a step, seconds, or None if there is no limit."""
    times = learned.model.times
    if not busiest:
        # Nothing is known of a group that has had no request yet.
        return settings.max_idle_step if times is not None else None
    if settings.itl_slo is not None:
        return settings.itl_slo
    if times is None:
        return 0.0
    reference = learned.peak or times.alone(busiest, total)
    return (1 + settings.max_step_growth) * times.seconds(reference)


def _others(rank: RankSnapshot, use: RankUse) -> int:
    """Return the sequences on a rank that are not lines of this router.

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
        return replace(room, lines=min(room.lines, lines * 3 // 4), starts=0)
    if used >= 1 - settings.kv_reserve or rank.load.waiting_requests:
        return replace(room, starts=0)
    return room
