"""Filter, score, pick: which rank takes a request.

Pure functions of a frozen snapshot, so that tests and the simulator run the very same code.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankSnapshot


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request is expected to cost, in tokens."""

    prompt_tokens: int
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pick:
    """The rank that takes the request, and why."""

    group_id: str
    epoch: str
    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoPick:
    """No rank can take the request now, and why."""

    reason: str


def pick_rank(fleet: FleetSnapshot, demand: Demand, *, turn: int = 0) -> Pick | NoPick:
    """Choose the rank with the fewest outstanding tokens.

    Args:
        fleet: the fleet now.
        demand: what the request needs.
        turn: counts picks; equal ranks take turns by it, in the order of group id and rank.
    """
    candidates = [rank for group in fleet.groups for rank in _fit(group, demand)]
    if not candidates:
        return NoPick(_why_none(fleet, demand))
    fewest = min(rank.outstanding_tokens for rank in candidates)
    equals = [rank for rank in candidates if rank.outstanding_tokens == fewest]
    chosen = equals[turn % len(equals)]
    return Pick(
        chosen.group_id,
        chosen.epoch,
        chosen.rank,
        f"fewest outstanding tokens ({fewest}) of {len(candidates)} ranks"
        + (f", turn among {len(equals)} equals" if len(equals) > 1 else ""),
    )


def _fit(group: GroupSnapshot, demand: Demand) -> Iterator[RankSnapshot]:
    if group.state is not MemberState.READY:
        return
    for rank in group.ranks:
        long_enough = rank.max_model_len == 0 or demand.prompt_tokens < rank.max_model_len
        if rank.healthy and not rank.draining and long_enough:
            yield rank


def _why_none(fleet: FleetSnapshot, demand: Demand) -> str:
    if not fleet.groups and fleet.history:
        last = fleet.history[0]
        return f"no group is here, the last one ({last.group_id}) is gone: {last.reason}"
    if not fleet.groups:
        return "no group has joined this router yet"
    if fleet.ready:
        return f"no ready rank takes a prompt of {demand.prompt_tokens} tokens"
    return "no group is ready: " + "; ".join(
        f"{group.group_id} is {group.state} ({group.reason})" for group in fleet.groups
    )
