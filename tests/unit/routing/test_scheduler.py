"""RankScheduler, decide and Sessions: choice of the rank, reason, and stored state."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving.link.block_hashes import PromptBlockHashes, block_hashes
from serving.routing.decision import (
    DecisionKind,
    NoCandidate,
    NoCandidateKind,
    RoutingDecision,
    RoutingRequest,
)
from serving.routing.filters import survey
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scheduler import EXPLAINED, RankScheduler, Sessions, decide
from serving.routing.scorers import SCORERS, AffinityHints
from serving.routing.snapshot import MemberState
from serving.settings import RoutingSettings, RoutingWeights
from serving.telemetry.metrics import REGISTRY
from tests.support.fleets import fleet, fleets, group, loads, rank, ranks_of
from tests.support.samples import sample

SETTINGS = RoutingSettings()
SIZE = 4


def place(decision):
    assert isinstance(decision, RoutingDecision), decision
    return decision.rank_id.group_id, decision.rank_id.rank


def decision(snapshot, request=RoutingRequest(100, 50), settings=SETTINGS, turn=0, **hints):  # noqa: B008  frozen
    return decide(snapshot, request, settings, AffinityHints(**hints), turn)


def with_tokens(snapshot, key, tokens):
    """Return the snapshot with another number of outstanding tokens on one rank."""
    return replace(
        snapshot,
        groups=tuple(
            replace(
                each,
                ranks=tuple(
                    replace(one, outstanding_tokens=tokens, inflight_requests=1)
                    if one.rank_id == key
                    else one
                    for one in each.ranks
                ),
            )
            for each in snapshot.groups
        ),
    )


IDLE = fleet(loads(0, 0), loads(0, 0, name="g1"))


@pytest.mark.parametrize(
    ("snapshot", "hints", "expected", "kind"),
    [
        pytest.param(fleet(loads(9, 3)), {}, ("g0", 1), DecisionKind.LOAD, id="least load"),
        pytest.param(
            fleet(loads(500), loads(100, name="g1")),
            {},
            ("g1", 0),
            DecisionKind.LOAD,
            id="any group",
        ),
        pytest.param(
            fleet(group(rank(0, kv=0.9), rank(1, kv=0.1))),
            {},
            ("g0", 1),
            DecisionKind.LOAD,
            id="cache room between equals",
        ),
        pytest.param(
            fleet(loads(0, 900), loads(0, 100, name="g1")),
            {},
            ("g1", 0),
            DecisionKind.LOAD,
            id="the group that waits less for its slowest",
        ),
        pytest.param(
            IDLE,
            {"matched": {("g1", "e", 1): 96}},
            ("g1", 1),
            DecisionKind.PREFIX,
            id="cached prefix",
        ),
        pytest.param(
            fleet(loads(0, 400)),
            {"matched": {("g0", "e", 1): 96}},
            ("g0", 1),
            DecisionKind.PREFIX,
            id="a long prefix is worth some load",
        ),
        pytest.param(
            fleet(loads(0, 400)),
            {"matched": {("g0", "e", 1): 16}},
            ("g0", 0),
            DecisionKind.LOAD,
            id="a short prefix is not",
        ),
        pytest.param(
            fleet(loads(0, 9000)),
            {"matched": {("g0", "e", 1): 96}},
            ("g0", 0),
            DecisionKind.LOAD,
            id="past the bound load alone",
        ),
        pytest.param(
            IDLE,
            {"matched": {("g1", "e", 1): 96}, "sticky": ("g0", "e", 1)},
            ("g0", 1),
            DecisionKind.SESSION,
            id="a session is worth more than a prefix",
        ),
        pytest.param(
            IDLE,
            {"sticky": ("g0", "old", 1)},
            ("g0", 0),
            DecisionKind.LOAD,
            id="session of a dead gang",
        ),
        pytest.param(
            fleet(loads(0), group(rank(group="g1"), name="g1", state=MemberState.FENCED)),
            {"sticky": ("g1", "e", 0)},
            ("g0", 0),
            DecisionKind.ONLY,
            id="session of a fenced group",
        ),
    ],
)
def test_picks(snapshot, hints, expected, kind):
    found = decision(snapshot, **hints)
    assert (place(found), found.kind) == (expected, kind)


@pytest.mark.parametrize("turn", range(5))
def test_equals_take_turns(turn):
    expected = [("g0", 0), ("g0", 1), ("g1", 0), ("g1", 1)][turn % 4]
    assert place(decision(IDLE, turn=turn)) == expected


def test_a_weight_of_0_turns_a_scorer_off():
    settings = RoutingSettings(weights=RoutingWeights(prefix=0))
    assert place(decision(fleet(loads(0, 5)), settings=settings, matched={("g0", "e", 1): 96})) == (
        "g0",
        0,
    )


def test_says_why_none():
    none = decision(fleet(group(rank(max_model_len=100))))
    assert isinstance(none, NoCandidate)
    assert none.kind is NoCandidateKind.TOO_LARGE


def test_explains_the_best_few_and_the_one_that_was_picked():
    snapshot = fleet(loads(*[7] * 50))
    found = decision(snapshot, RoutingRequest(100, explain=True), turn=49)
    assert found.rank_id.rank == 49
    explained = found.explain()
    assert len(explained["candidates"]) == EXPLAINED
    assert 49 in [each["rank"] for each in explained["candidates"]]
    assert set(explained["candidates"][0]) == {
        "group", "rank", "total", "load", "kv_room", "balance",
    }  # fmt: skip
    text = json.dumps(explained)
    assert len(text) < 2000, "it goes into a header"
    assert explained["kind"] == "load"
    assert "in rotation among 50" in explained["reason"]


def test_explains_scores_and_filters():
    snapshot = fleet(group(rank(0), rank(1, 100), rank(2, healthy=False)))
    found = decision(snapshot, RoutingRequest(100, 50, explain=True), matched={("g0", "e", 1): 64})
    assert found.explain() == {
        "group": "g0",
        "rank": 1,
        "kind": "prefix",
        "reason": "64 prompt tokens cached, 100 outstanding tokens, out of 2 ranks",
        "matched_tokens": 64,
        "filtered": {"usable": 1},
        "candidates": [
            {
                "group": "g0", "rank": 1, "total": 2.28,
                "load": 0.6, "kv_room": 1.0, "prefix": 0.64, "balance": 0.6,
            },
            {
                "group": "g0", "rank": 0, "total": 1.5,
                "load": 1.0, "kv_room": 1.0, "prefix": 0.0, "balance": 1.0,
            },
        ],
    }  # fmt: skip


def test_keeps_no_candidates_without_explain():
    assert decision(IDLE).candidates == ()


# -- stored state -------------------------------------------------------------------------


def tell(index, key, tokens):
    names = block_hashes(tokens, SIZE)
    index.apply(key, sequence=0, reset=True, block_size=SIZE, removed=[], stored=names)


def test_a_session_stays_and_is_forgotten():
    scheduler = RankScheduler(RoutingSettings(session_ttl=60))
    first = place(scheduler.choose(IDLE, RoutingRequest(10, session_id="s"), 0.0))
    for _ in range(3):
        scheduler.choose(IDLE, RoutingRequest(10), 1.0)
    assert place(scheduler.choose(IDLE, RoutingRequest(10, session_id="s"), 2.0)) == first
    later = scheduler.choose(IDLE, RoutingRequest(10, session_id="s"), 100.0)
    assert later.kind is DecisionKind.LOAD


def test_goes_where_a_rank_says_the_prefix_is():
    index = PrefixIndex()
    tell(index, ("g1", "e", 0), range(40))
    scheduler = RankScheduler(SETTINGS, index)
    before = sample("moe_prefix_matched_tokens_total")
    found = scheduler.choose(IDLE, RoutingRequest(41, prompt=PromptBlockHashes(range(41))), 0.0)
    assert (place(found), found.matched_tokens) == (("g1", 0), 40)
    assert sample("moe_prefix_matched_tokens_total") == before + 40


def test_two_routers_with_the_same_reports_decide_the_same():
    schedulers = []
    for _ in range(2):
        index = PrefixIndex()
        tell(index, ("g1", "e", 1), range(40))
        schedulers.append(RankScheduler(SETTINGS, index))
    request = RoutingRequest(41, prompt=PromptBlockHashes(range(41)))
    assert len({place(scheduler.choose(IDLE, request, 0.0)) for scheduler in schedulers}) == 1


@pytest.mark.parametrize(
    ("trust", "same"),
    [pytest.param(0.5, True, id="guesses"), pytest.param(0, False, id="does not")],
)
def test_guesses_where_ranks_tell_nothing(trust, same):
    scheduler = RankScheduler(RoutingSettings(history_trust=trust))
    prompt = list(range(200))
    first = place(
        scheduler.choose(IDLE, RoutingRequest(200, prompt=PromptBlockHashes(prompt)), 0.0)
    )
    again = place(
        scheduler.choose(IDLE, RoutingRequest(200, prompt=PromptBlockHashes(prompt)), 0.0)
    )
    assert (again == first) is same


def test_counts_picks_by_kind():
    before = sample("moe_routing_picks_total", reason="load")
    scheduler = RankScheduler(SETTINGS)
    scheduler.choose(IDLE, RoutingRequest(10), 0.0)
    scheduler.choose(fleet(), RoutingRequest(10), 0.0)
    assert sample("moe_routing_picks_total", reason="load") == before + 1


# -- invariants ---------------------------------------------------------------------------

prompts = st.integers(0, 20_000)


@given(fleets(), prompts, st.integers(0, 2000), st.integers(0, 99), st.data())
def test_never_chooses_a_filtered_rank(snapshot, prompt, output, turn, data):
    request = RoutingRequest(prompt, output, explain=data.draw(st.booleans()))
    every = [each.rank_id for each in ranks_of(snapshot)]
    keys = st.sampled_from(every) if every else st.nothing()
    found = decide(
        snapshot,
        request,
        SETTINGS,
        AffinityHints(
            data.draw(st.dictionaries(keys, prompts)) if every else {},
            (),
            data.draw(st.none() | keys) if every else None,
        ),
        turn,
    )
    left = [each.rank_id for each in survey(snapshot, request, SETTINGS).candidates]
    if left:
        assert found.rank_id in left
        assert len(found.candidates) <= EXPLAINED
    else:
        assert isinstance(found, NoCandidate)


@given(
    st.lists(st.integers(0, 20_000), min_size=2, max_size=8),
    st.integers(0, 7),
    st.integers(1, 5000),
    st.integers(0, 5000),
)
def test_a_session_stays_up_to_the_bound_and_load_decides_past_it(outstanding, where, own, slack):
    where %= len(outstanding)
    settings = RoutingSettings(affinity_slack=slack)
    snapshot = fleet(loads(*outstanding))
    sticky = ("g0", "e", where)
    found = decision(snapshot, RoutingRequest(own), settings, sticky=sticky)
    mean = sum(outstanding) / len(outstanding)
    if outstanding[where] <= mean * settings.session_load_bound + slack:
        assert found.rank_id.rank == where
        assert found.kind is DecisionKind.SESSION
    else:
        assert outstanding[found.rank_id.rank] == min(outstanding)


@given(
    st.lists(st.integers(0, 20_000), min_size=2, max_size=8),
    st.integers(0, 7),
    st.integers(1, 5000),
)
def test_a_prefix_never_overloads_its_rank(outstanding, where, own):
    where %= len(outstanding)
    found = decision(
        fleet(loads(*outstanding)), RoutingRequest(own), matched={("g0", "e", where): own}
    )
    mean = sum(outstanding) / len(outstanding)
    bound = mean * SETTINGS.session_load_bound + SETTINGS.affinity_slack
    assert outstanding[found.rank_id.rank] <= max(bound, min(outstanding))


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 40), st.integers(1, 3000))
def test_equal_ranks_share_load(size, groups, rounds, tokens):
    assume(size * groups > 1)
    snapshot = fleet(*(loads(*[0] * size, name=f"g{number}") for number in range(groups)))
    scheduler = RankScheduler(SETTINGS)
    taken = Counter()
    for _ in range(rounds):
        found = scheduler.choose(snapshot, RoutingRequest(tokens), 0.0)
        key = found.rank_id
        taken[key] += 1
        snapshot = with_tokens(snapshot, key, taken[key] * tokens)
    counts = [taken[each.rank_id] for each in ranks_of(snapshot)]
    assert max(counts) - min(counts) <= 1


# -- Sessions --------------------------------------------------------------------------

HERE, THERE = ("g0", "e", 0), ("g0", "e", 1)


def test_follows_the_last_pick():
    sessions = Sessions(10, 60)
    assert sessions.get("a", 0.0) is None
    sessions.put("a", HERE, 0.0)
    sessions.put("a", THERE, 1.0)
    assert sessions.get("a", 2.0) == THERE
    assert sessions.get("b", 2.0) is None


@pytest.mark.parametrize(("later", "expected"), [(60.0, HERE), (60.5, None)], ids=["in", "out"])
def test_is_forgotten_after_a_while_without_requests(later, expected):
    sessions = Sessions(10, 60)
    sessions.put("a", HERE, 100.0)
    assert sessions.get("a", 100.0 + later) == expected


def test_old_ones_make_room():
    sessions = Sessions(2, 60)
    for name in "abc":
        sessions.put(name, HERE, 0.0)
    assert sessions.get("a", 0.0) is None
    assert sessions.get("c", 0.0) == HERE


def test_the_old_take_no_memory():
    sessions = Sessions(100, 60)
    for name in "abc":
        sessions.put(name, HERE, 0.0)
    sessions.put("d", HERE, 100.0)
    assert len(sessions) == 1


@pytest.mark.parametrize(("limit", "name"), [(10, None), (0, "a")], ids=["nameless", "turned off"])
def test_remembers_nothing(limit, name):
    sessions = Sessions(limit, 60)
    sessions.put(name, HERE, 0.0)
    assert len(sessions) == 0
    assert sessions.get(name, 0.0) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), max_size=50), st.integers(1, 5))
def test_bounded(history, limit):
    sessions, now = Sessions(limit, 10), 0.0
    for number, passed in history:
        now += passed
        sessions.put(f"s{number}", HERE, now)
        assert len(sessions) <= limit
        assert sessions.get(f"s{number}", now) == HERE


# -- timing ----------------------------------------------------------------------------


def seconds(scorer):
    return REGISTRY.get_sample_value("moe_routing_scorer_seconds_total", {"scorer": scorer})


def test_each_scorer_that_has_a_weight_is_timed():
    before = {name: seconds(name) for name in SCORERS}
    weights = RoutingSettings().weights.model_copy(update={"balance": 0.0})
    RankScheduler(RoutingSettings(weights=weights)).choose(
        fleet(loads(1, 2)), RoutingRequest(10), 0.0
    )
    after = {name: seconds(name) for name in SCORERS}
    assert {name for name in SCORERS if after[name] > before[name]} == SCORERS.keys() - {"balance"}


ADAPTED = RoutingRequest(100, 50, adapter="a@1")


def adapted(*outstanding):
    """Return a group whose ranks run adapters."""
    ranks = (rank(index, tokens, adapter_slots=2) for index, tokens in enumerate(outstanding))
    return fleet(group(*ranks))


def test_a_rank_with_the_adapter_is_preferred_within_the_load_bound():
    near = adapted(0, 1000, 0)
    ids = [each.rank_id for each in ranks_of(near)]
    chosen = decision(near, ADAPTED, adapter={ids[1]: 1.0, ids[0]: 0.6})
    assert (chosen.rank_id, chosen.kind) == (ids[1], DecisionKind.ADAPTER)
    assert chosen.reason.startswith("holds the adapter or is to load it, 1000 outstanding tokens")
    far = adapted(0, 9000, 0)
    assert decision(far, ADAPTED, adapter={ids[1]: 1.0, ids[2]: 0.6}).rank_id == ids[2]


def test_requests_for_an_adapter_keep_to_its_ranks_until_these_are_loaded():
    scheduler = RankScheduler(SETTINGS)
    snapshot = adapted(0, 0, 0, 0)
    ids = [each.rank_id for each in ranks_of(snapshot)]
    for rank_id in ids:
        scheduler._adapters.add(rank_id, 2)
    before = sample("moe_adapter_placements_total", outcome="hit")
    first = scheduler.choose(snapshot, ADAPTED, 0.0).rank_id
    scheduler._adapters.report(first, ["a@1"])
    assert {scheduler.choose(snapshot, ADAPTED, 0.0).rank_id for _ in range(8)} == {first}
    assert sample("moe_adapter_placements_total", outcome="hit") == before + 8
    busy = adapted(*(20_000 if rank_id == first else 0 for rank_id in ids))
    assert scheduler.choose(busy, ADAPTED, 0.0).rank_id != first
    plain = scheduler.choose(snapshot, RoutingRequest(100, 50), 0.0)
    assert plain.kind is DecisionKind.LOAD


def test_without_a_rank_that_runs_adapters_waiting_is_of_no_use():
    none = decision(fleet(loads(0, 0)), ADAPTED, adapter={})
    assert isinstance(none, NoCandidate)
    assert none.kind is NoCandidateKind.UNSUITABLE
    assert "runs LoRA adapters" in none.reason
