"""Filters: the candidates they leave, what each removes, and the reason if none is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing import filters
from serving.routing.decision import NoCandidateKind, RoutingRequest
from serving.routing.filters import FILTERS, survey, why_none
from serving.routing.snapshot import MemberState
from serving.settings import RoutingSettings
from tests.support.fleets import fleet, fleets, group, loads, rank, ranks_of

SETTINGS = RoutingSettings()
REQUEST = RoutingRequest(100, 50)


@pytest.mark.parametrize(
    ("keep", "one", "expected"),
    [
        pytest.param(filters.usable, rank(), True, id="healthy"),
        pytest.param(filters.usable, rank(healthy=False), False, id="not healthy"),
        pytest.param(filters.usable, rank(draining=True), False, id="draining"),
        pytest.param(filters.runs_adapters, rank(), True, id="no adapter named"),
        pytest.param(filters.long_enough, rank(), True, id="length not told"),
        pytest.param(filters.long_enough, rank(max_model_len=101), True, id="prompt and a token"),
        pytest.param(filters.long_enough, rank(max_model_len=100), False, id="prompt alone"),
        pytest.param(filters.token_budget, rank(outstanding=9**9), True, id="capacity not told"),
        pytest.param(
            filters.token_budget,
            rank(outstanding=850, kv_blocks=100, kv_block_size=10),
            True,
            id="just fits",
        ),
        pytest.param(
            filters.token_budget,
            rank(outstanding=851, kv_blocks=100, kv_block_size=10),
            False,
            id="one token too many",
        ),
        pytest.param(
            filters.token_budget, rank(kv_blocks=1, kv_block_size=10), True, id="alone, too large"
        ),
        pytest.param(filters.free_slot, rank(inflight=99), True, id="slots not told"),
        pytest.param(filters.free_slot, rank(inflight=9, max_num_seqs=8), True, id="allowance"),
        pytest.param(filters.free_slot, rank(inflight=10, max_num_seqs=8), False, id="full"),
        pytest.param(
            filters.short_queue, rank(inflight=1, waiting=4, max_num_seqs=8), True, id="few wait"
        ),
        pytest.param(
            filters.short_queue, rank(inflight=1, waiting=5, max_num_seqs=8), False, id="many wait"
        ),
        pytest.param(
            filters.short_queue, rank(inflight=1, waiting=1, max_num_seqs=1), True, id="one may"
        ),
        pytest.param(
            filters.short_queue,
            rank(inflight=0, waiting=99, max_num_seqs=8),
            True,
            id="idle for us",
        ),
    ],
)
def test_keeps(keep, one, expected):
    assert keep([one], REQUEST, SETTINGS) == ([one] if expected else [])


@pytest.mark.parametrize("headroom", [0.5, 2.0])
def test_headroom_scales_the_budget(headroom):
    settings = RoutingSettings(kv_headroom=headroom)
    budget = int(1000 * headroom)
    fits, not_fits = (
        rank(outstanding=budget - 150 + more, kv_blocks=100, kv_block_size=10) for more in (0, 1)
    )
    assert filters.token_budget([fits, not_fits], REQUEST, settings) == [fits]


FULL = {"inflight": 10, "max_num_seqs": 8}


@pytest.mark.parametrize(
    ("snapshot", "demand", "kind", "words"),
    [
        pytest.param(
            fleet(), REQUEST, NoCandidateKind.NOT_READY, "no group has joined", id="empty"
        ),
        pytest.param(
            fleet(history=(group(name="g7", state=MemberState.GONE),)),
            REQUEST,
            NoCandidateKind.NOT_READY,
            "the last one (g7) is gone: because",
            id="all gone",
        ),
        pytest.param(
            fleet(group(rank(), state=MemberState.FENCED)),
            REQUEST,
            NoCandidateKind.NOT_READY,
            "g0 is fenced (because)",
            id="none ready",
        ),
        pytest.param(
            fleet(loads(0)),
            RoutingRequest(100, avoid={("g0", "e")}),
            NoCandidateKind.NOT_READY,
            "must avoid",
            id="avoided",
        ),
        pytest.param(
            fleet(loads(0)),
            RoutingRequest(100, adapter="a@1"),
            NoCandidateKind.UNSUITABLE,
            "no rank of a ready group runs LoRA adapters",
            id="no adapters",
        ),
        pytest.param(
            fleet(group(rank(healthy=False))),
            REQUEST,
            NoCandidateKind.NOT_READY,
            "healthy",
            id="none healthy",
        ),
        pytest.param(
            fleet(group(rank(max_model_len=100))),
            REQUEST,
            NoCandidateKind.TOO_LARGE,
            "a prompt of 100 tokens",
            id="too large",
        ),
        pytest.param(
            fleet(group(rank(0, 100, kv_blocks=1, kv_block_size=10))),
            REQUEST,
            NoCandidateKind.NO_ROOM,
            "room for 150 more tokens",
            id="no room",
        ),
        pytest.param(
            fleet(group(rank(0, **FULL), rank(1, max_model_len=100))),
            REQUEST,
            NoCandidateKind.NO_ROOM,
            "removed by long_enough",
            id="a full one could take it",
        ),
    ],
)
def test_says_why_none(snapshot, demand, kind, words):
    found = survey(snapshot, demand, SETTINGS)
    assert found.candidates == []
    none = why_none(snapshot, demand, found)
    assert none.kind is kind
    assert words in none.reason


def test_counts_what_each_filter_took():
    snapshot = fleet(
        group(rank(0), rank(1, healthy=False), rank(2, **FULL), rank(3, **FULL)),
        group(rank(group="g1"), name="g1", state=MemberState.DRAINING),
        group(rank(group="g2"), name="g2"),
    )
    found = survey(snapshot, RoutingRequest(1, avoid=[("g2", "e")]), SETTINGS)
    assert found.candidates == [snapshot.groups[0].ranks[0]]
    assert found.filtered == {"ready_group": 1, "avoided_group": 1, "usable": 1, "free_slot": 2}


def test_another_epoch_of_an_avoided_group_is_another_group():
    assert survey(fleet(loads(0)), RoutingRequest(1, avoid=[("g0", "old")]), SETTINGS).candidates


@given(fleets(), st.integers(0, 20_000), st.integers(0, 2000), st.sampled_from(["", "g0", "g1"]))
def test_every_candidate_passes_every_filter(snapshot, prompt, output, avoided):
    request = RoutingRequest(prompt, output, avoid={(avoided, "e")})
    found = survey(snapshot, request, SETTINGS)
    states = {each.group_id: each.state for each in snapshot.groups}
    for one in found.candidates:
        assert states[one.group_id] is MemberState.READY
        assert one.group_id != avoided
        assert all(keep([one], request, SETTINGS) for keep, _, _ in FILTERS.values())
    assert len(found.candidates) + sum(found.filtered.values()) >= len(ranks_of(snapshot)) - sum(
        len(each.ranks) for each in snapshot.groups if found.emptied_by
    )
    if not found.candidates:
        assert why_none(snapshot, request, found).reason


@given(fleets(states=(MemberState.READY,)), st.integers(0, 10**9))
def test_an_idle_rank_takes_whatever_its_model_can(snapshot, tokens):
    request = RoutingRequest(1, tokens)
    idle = [
        one
        for one in ranks_of(snapshot)
        if one.healthy and not one.draining and not one.inflight_requests
    ]
    assert set(idle) <= set(survey(snapshot, request, SETTINGS).candidates)
