"""Filters: determine which ranks can run a request at all.

Pure functions; each one narrows the result of the previous one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.routing.decision import NoCandidate, NoCandidateKind, RoutingRequest
from serving.routing.snapshot import MemberState
from serving.routing.views import FleetView, RankView
from serving.settings import RoutingSettings

Ranks = list[RankView]
Filter = Callable[[Ranks, RoutingRequest, RoutingSettings], Ranks]


@dataclass(frozen=True, slots=True)
class Survey:
    """The candidates that passed all filters, and how many ranks each filter removed."""

    candidates: Ranks
    filtered: dict[str, int]
    """Number of ranks that each filter removed, in order; filters that removed none are omitted."""
    emptied_by: str = ""
    """The filter that removed the last candidate; empty if candidates remain."""


def runs_adapters(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks that run LoRA adapters, if the request names one.

    Ranks of earlier versions do not: they would ignore the adapter.
    """
    del settings
    if request.adapter is None:
        return ranks
    return [rank for rank in ranks if rank.adapter_slots]


def usable(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks that are healthy according to their last report and not draining."""
    del request, settings
    return [rank for rank in ranks if rank.healthy and not rank.draining]


def long_enough(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose maximum sequence length exceeds the length of the prompt."""
    del settings
    tokens = request.prompt_tokens
    return [rank for rank in ranks if not rank.max_model_len or tokens < rank.max_model_len]


def token_budget(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose KV cache has space for this router's outstanding tokens and this request.

    Like the filters below, always keeps a rank on which this router has no requests, regardless of
    the rank's reports: a request that does not fit alongside others must be able to run alone, and
    reports may be out of date.
    """
    tokens, headroom = request.tokens, settings.kv_headroom
    return [
        rank
        for rank in ranks
        if not rank.inflight_requests
        or not rank.kv_blocks
        or rank.outstanding_tokens + tokens <= rank.kv_blocks * rank.kv_block_size * headroom
    ]


def free_slot(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks on which this router has fewer requests than max_num_seqs plus the allowance."""
    del request
    allowed = 1 + settings.queue_allowance
    return [
        rank
        for rank in ranks
        if not rank.max_num_seqs or rank.inflight_requests < rank.max_num_seqs * allowed
    ]


def short_queue(ranks: Ranks, request: RoutingRequest, settings: RoutingSettings) -> Ranks:
    """Keep ranks whose engine has few waiting requests, including those of other routers."""
    del request
    share = settings.engine_queue
    return [
        rank
        for rank in ranks
        if (waiting := rank.load.waiting_requests) <= 1
        or not rank.inflight_requests
        or not rank.max_num_seqs
        or waiting <= rank.max_num_seqs * share
    ]


FILTERS: dict[str, tuple[Filter, NoCandidateKind, str]] = {
    "runs_adapters": (
        runs_adapters,
        NoCandidateKind.UNSUITABLE,
        "no rank of a ready group runs LoRA adapters (adapters and lora.folder of the model)",
    ),
    "usable": (usable, NoCandidateKind.NOT_READY, "no rank of a ready group is healthy"),
    "long_enough": (
        long_enough,
        NoCandidateKind.TOO_LARGE,
        "no rank accepts a prompt of {prompt} tokens",
    ),
    "token_budget": (
        token_budget,
        NoCandidateKind.NO_ROOM,
        "no rank's KV cache has room for {tokens} more tokens",
    ),
    "free_slot": (
        free_slot,
        NoCandidateKind.NO_ROOM,
        "all ranks run their maximum number of requests",
    ),
    "short_queue": (short_queue, NoCandidateKind.NO_ROOM, "all engines have queued requests"),
}
"""The filters in order, applied after the filter by group state. Each has a function, and the kind
and text of the result if no candidate is left."""


def survey(fleet: FleetView, request: RoutingRequest, settings: RoutingSettings) -> Survey:
    """Apply all filters to the ranks of ready groups."""
    filtered: dict[str, int] = {}
    ranks: Ranks = []
    for group in fleet.groups:
        if group.state is not MemberState.READY:
            _add(filtered, "ready_group", len(group.ranks))
        elif request.avoid and (group.group_id, group.epoch) in request.avoid:
            _add(filtered, "avoided_group", len(group.ranks))
        else:
            ranks.extend(group.ranks)
    if not ranks:
        return Survey([], filtered, "ready_group")
    for name, (keep, _, _) in FILTERS.items():
        left = keep(ranks, request, settings)
        _add(filtered, name, len(ranks) - len(left))
        if not left:
            return Survey([], filtered, name)
        ranks = left
    return Survey(ranks, filtered)


def why_none(fleet: FleetView, request: RoutingRequest, found: Survey) -> NoCandidate:
    """Return the result for a survey without candidates."""
    if found.emptied_by != "ready_group":
        _, kind, words = FILTERS[found.emptied_by]
        reason = words.format(prompt=request.prompt_tokens, tokens=request.tokens)
        others = [name for name in found.filtered if name in FILTERS and name != found.emptied_by]
        if others:
            reason += f" (other ranks were removed by {', '.join(others)})"
        return NoCandidate(reason, kind)
    return NoCandidate(_why_not_ready(fleet), NoCandidateKind.NOT_READY)


def _why_not_ready(fleet: FleetView) -> str:
    if not fleet.groups and fleet.history:
        last = fleet.history[0]
        return f"no group is connected; the last one ({last.group_id}) is gone: {last.reason}"
    if not fleet.groups:
        return "no group has joined this router yet"
    if fleet.ready:
        return "the only ready groups are those that this request must avoid"
    return "no group is ready: " + "; ".join(
        f"{group.group_id} is {group.state} ({group.reason})" for group in fleet.groups
    )


def _add(counts: dict[str, int], name: str, ranks: int) -> None:
    if ranks:
        counts[name] = counts.get(name, 0) + ranks
