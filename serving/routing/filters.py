"""Filters: which ranks could take a request at all. Pure; each narrows what the one before left."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.routing.decision import Demand, NoPick, NoPickKind
from serving.routing.snapshot import FleetSnapshot, MemberState, RankSnapshot
from serving.settings import RoutingSettings

Ranks = list[RankSnapshot]
Filter = Callable[[Ranks, Demand, RoutingSettings], Ranks]


@dataclass(frozen=True, slots=True)
class Survey:
    """What the filters left, and what they took."""

    candidates: Ranks
    filtered: dict[str, int]
    """Ranks that each filter took out, in order; only filters that took any."""
    emptied_by: str = ""
    """The filter that took the last ones."""


def usable(ranks: Ranks, demand: Demand, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose last report is good and that do not drain."""
    del demand, settings
    return [rank for rank in ranks if rank.healthy and not rank.draining]


def long_enough(ranks: Ranks, demand: Demand, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose longest sequence has room for the prompt and one token."""
    del settings
    tokens = demand.prompt_tokens
    return [rank for rank in ranks if not rank.max_model_len or tokens < rank.max_model_len]


def token_budget(ranks: Ranks, demand: Demand, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose KV cache has room for this router's outstanding tokens and these.

    As in the filters below, a rank where this router has nothing is kept whatever else is said:
    what does not fit beside others must be able to run alone, and reports may be out of date.
    """
    tokens, headroom = demand.tokens, settings.kv_headroom
    return [
        rank
        for rank in ranks
        if not rank.inflight_requests
        or not rank.kv_blocks
        or rank.outstanding_tokens + tokens <= rank.kv_blocks * rank.kv_block_size * headroom
    ]


def free_slot(ranks: Ranks, demand: Demand, settings: RoutingSettings) -> Ranks:
    """Keep ranks that run fewer of this router's requests than they take, and a few more."""
    del demand
    allowed = 1 + settings.queue_allowance
    return [
        rank
        for rank in ranks
        if not rank.max_num_seqs or rank.inflight_requests < rank.max_num_seqs * allowed
    ]


def short_queue(ranks: Ranks, demand: Demand, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose engine has few requests waiting, those of other routers among them."""
    del demand
    share = settings.engine_queue
    return [
        rank
        for rank in ranks
        if (waiting := rank.load.waiting_requests) <= 1
        or not rank.inflight_requests
        or not rank.max_num_seqs
        or waiting <= rank.max_num_seqs * share
    ]


FILTERS: dict[str, tuple[Filter, NoPickKind, str]] = {
    "usable": (usable, NoPickKind.NOT_READY, "no rank of a ready group is healthy"),
    "long_enough": (
        long_enough,
        NoPickKind.TOO_LARGE,
        "no rank takes a prompt of {prompt} tokens",
    ),
    "token_budget": (
        token_budget,
        NoPickKind.NO_ROOM,
        "no rank's KV cache has room for {tokens} more tokens",
    ),
    "free_slot": (free_slot, NoPickKind.NO_ROOM, "all ranks run as many requests as they take"),
    "short_queue": (short_queue, NoPickKind.NO_ROOM, "requests wait already in all engines"),
}
"""In order, after the groups themselves: the filter, and what it means when nothing is left."""


def survey(fleet: FleetSnapshot, demand: Demand, settings: RoutingSettings) -> Survey:
    """Apply all filters to the ranks of ready groups."""
    filtered: dict[str, int] = {}
    ranks: Ranks = []
    for group in fleet.groups:
        if group.state is not MemberState.READY:
            _add(filtered, "ready_group", len(group.ranks))
        elif demand.avoid and (group.group_id, group.epoch) in demand.avoid:
            _add(filtered, "avoided_group", len(group.ranks))
        else:
            ranks.extend(group.ranks)
    if not ranks:
        return Survey([], filtered, "ready_group")
    for name, (keep, _, _) in FILTERS.items():
        left = keep(ranks, demand, settings)
        _add(filtered, name, len(ranks) - len(left))
        if not left:
            return Survey([], filtered, name)
        ranks = left
    return Survey(ranks, filtered)


def why_none(fleet: FleetSnapshot, demand: Demand, found: Survey) -> NoPick:
    """Say why a survey without candidates found none."""
    if found.emptied_by != "ready_group":
        _, kind, words = FILTERS[found.emptied_by]
        reason = words.format(prompt=demand.prompt_tokens, tokens=demand.tokens)
        others = [name for name in found.filtered if name in FILTERS and name != found.emptied_by]
        if others:
            reason += f" (others were taken out before, by {', '.join(others)})"
        return NoPick(reason, kind)
    return NoPick(_why_not_ready(fleet), NoPickKind.NOT_READY)


def _why_not_ready(fleet: FleetSnapshot) -> str:
    if not fleet.groups and fleet.history:
        last = fleet.history[0]
        return f"no group is here, the last one ({last.group_id}) is gone: {last.reason}"
    if not fleet.groups:
        return "no group has joined this router yet"
    if fleet.ready:
        return "the groups that are ready are those that this request has to avoid"
    return "no group is ready: " + "; ".join(
        f"{group.group_id} is {group.state} ({group.reason})" for group in fleet.groups
    )


def _add(counts: dict[str, int], name: str, ranks: int) -> None:
    if ranks:
        counts[name] = counts.get(name, 0) + ranks
