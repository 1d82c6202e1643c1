"""Chooser and decide: which rank, why, and what is remembered."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving.link.block_hashes import PromptNames, block_names
from serving.routing.decision import Demand, NoPick, NoPickKind, Pick, PickKind, key_of
from serving.routing.filters import survey
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scheduler import EXPLAINED, Chooser, decide
from serving.routing.scorers import Evidence
from serving.routing.snapshot import MemberState
from serving.settings import RoutingSettings, RoutingWeights
from serving.telemetry import metrics
from tests.unit.routing.fleets import fleet, fleets, group, loads, rank, ranks_of

SETTINGS = RoutingSettings()
SIZE = 4


def place(pick):
    assert isinstance(pick, Pick), pick
    return pick.group_id, pick.rank


def pick(snapshot, demand=Demand(100, 50), settings=SETTINGS, turn=0, **evidence):  # noqa: B008  frozen
    return decide(snapshot, demand, settings, Evidence(**evidence), turn)


def with_tokens(snapshot, key, tokens):
    """The snapshot with a rank's outstanding tokens changed."""
    return replace(
        snapshot,
        groups=tuple(
            replace(
                each,
                ranks=tuple(
                    replace(one, outstanding_tokens=tokens, inflight_requests=1)
                    if key_of(one) == key
                    else one
                    for one in each.ranks
                ),
            )
            for each in snapshot.groups
        ),
    )


IDLE = fleet(loads(0, 0), loads(0, 0, name="g1"))


@pytest.mark.parametrize(
    ("snapshot", "evidence", "expected", "kind"),
    [
        pytest.param(fleet(loads(9, 3)), {}, ("g0", 1), PickKind.LOAD, id="least load"),
        pytest.param(
            fleet(loads(500), loads(100, name="g1")), {}, ("g1", 0), PickKind.LOAD, id="any group"
        ),
        pytest.param(
            fleet(group(rank(0, kv=0.9), rank(1, kv=0.1))),
            {},
            ("g0", 1),
            PickKind.LOAD,
            id="cache room between equals",
        ),
        pytest.param(
            fleet(loads(0, 900), loads(0, 100, name="g1")),
            {},
            ("g1", 0),
            PickKind.LOAD,
            id="the group that waits less for its slowest",
        ),
        pytest.param(
            IDLE,
            {"matched": {("g1", "e", 1): 96}},
            ("g1", 1),
            PickKind.PREFIX,
            id="cached prefix",
        ),
        pytest.param(
            fleet(loads(0, 400)),
            {"matched": {("g0", "e", 1): 96}},
            ("g0", 1),
            PickKind.PREFIX,
            id="a long prefix is worth some load",
        ),
        pytest.param(
            fleet(loads(0, 400)),
            {"matched": {("g0", "e", 1): 16}},
            ("g0", 0),
            PickKind.LOAD,
            id="a short prefix is not",
        ),
        pytest.param(
            fleet(loads(0, 9000)),
            {"matched": {("g0", "e", 1): 96}},
            ("g0", 0),
            PickKind.LOAD,
            id="past the bound load alone",
        ),
        pytest.param(
            IDLE,
            {"matched": {("g1", "e", 1): 96}, "sticky": ("g0", "e", 1)},
            ("g0", 1),
            PickKind.SESSION,
            id="a session is worth more than a prefix",
        ),
        pytest.param(
            IDLE,
            {"sticky": ("g0", "old", 1)},
            ("g0", 0),
            PickKind.LOAD,
            id="session of a dead gang",
        ),
        pytest.param(
            fleet(loads(0), group(rank(group="g1"), name="g1", state=MemberState.FENCED)),
            {"sticky": ("g1", "e", 0)},
            ("g0", 0),
            PickKind.ONLY,
            id="session of a fenced group",
        ),
    ],
)
def test_picks(snapshot, evidence, expected, kind):
    found = pick(snapshot, **evidence)
    assert (place(found), found.kind) == (expected, kind)


@pytest.mark.parametrize("turn", range(5))
def test_equals_take_turns(turn):
    expected = [("g0", 0), ("g0", 1), ("g1", 0), ("g1", 1)][turn % 4]
    assert place(pick(IDLE, turn=turn)) == expected


def test_a_weight_of_0_turns_a_scorer_off():
    settings = RoutingSettings(weights=RoutingWeights(prefix=0))
    assert place(pick(fleet(loads(0, 5)), settings=settings, matched={("g0", "e", 1): 96})) == (
        "g0",
        0,
    )


def test_says_why_none():
    none = pick(fleet(group(rank(max_model_len=100))))
    assert isinstance(none, NoPick)
    assert none.kind is NoPickKind.TOO_LARGE


def test_explains_the_best_few_and_the_one_that_was_picked():
    snapshot = fleet(loads(*[7] * 50))
    found = pick(snapshot, Demand(100, explain=True), turn=49)
    assert found.rank == 49
    explained = found.explain()
    assert len(explained["candidates"]) == EXPLAINED
    assert 49 in [each["rank"] for each in explained["candidates"]]
    assert set(explained["candidates"][0]) == {
        "group", "rank", "total", "load", "kv_room", "balance",
    }  # fmt: skip
    text = json.dumps(explained)
    assert len(text) < 2000, "it goes into a header"
    assert explained["kind"] == "load"
    assert "turn among 50" in explained["reason"]


def test_explains_scores_and_filters():
    snapshot = fleet(group(rank(0), rank(1, 100), rank(2, healthy=False)))
    found = pick(snapshot, Demand(100, 50, explain=True), matched={("g0", "e", 1): 64})
    assert found.explain() == {
        "group": "g0",
        "rank": 1,
        "kind": "prefix",
        "reason": "64 prompt tokens cached, 100 outstanding tokens, of 2 ranks",
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


def test_keeps_no_candidates_unasked():
    assert pick(IDLE).candidates == ()


# -- what is remembered -------------------------------------------------------------------


def tell(index, key, tokens):
    names = block_names(tokens, SIZE)
    index.apply(key, sequence=0, reset=True, block_size=SIZE, removed=[], stored=names)


def test_a_session_stays_and_is_forgotten():
    chooser = Chooser(RoutingSettings(session_ttl=60))
    first = place(chooser.choose(IDLE, Demand(10, session_id="s"), 0.0))
    for _ in range(3):
        chooser.choose(IDLE, Demand(10), 1.0)
    assert place(chooser.choose(IDLE, Demand(10, session_id="s"), 2.0)) == first
    later = chooser.choose(IDLE, Demand(10, session_id="s"), 100.0)
    assert later.kind is PickKind.LOAD


def test_goes_where_a_rank_says_the_prefix_is():
    index = PrefixIndex()
    tell(index, ("g1", "e", 0), range(40))
    chooser = Chooser(SETTINGS, index)
    before = metrics.PREFIX_MATCHED_TOKENS._value.get()
    found = chooser.choose(IDLE, Demand(41, prompt=PromptNames(range(41))), 0.0)
    assert (place(found), found.matched_tokens) == (("g1", 0), 40)
    assert metrics.PREFIX_MATCHED_TOKENS._value.get() == before + 40


def test_two_routers_that_hear_the_same_decide_the_same():
    choosers = []
    for _ in range(2):
        index = PrefixIndex()
        tell(index, ("g1", "e", 1), range(40))
        choosers.append(Chooser(SETTINGS, index))
    demand = Demand(41, prompt=PromptNames(range(41)))
    assert len({place(chooser.choose(IDLE, demand, 0.0)) for chooser in choosers}) == 1


@pytest.mark.parametrize(
    ("trust", "same"),
    [pytest.param(0.5, True, id="guesses"), pytest.param(0, False, id="does not")],
)
def test_guesses_where_ranks_tell_nothing(trust, same):
    chooser = Chooser(RoutingSettings(history_trust=trust))
    prompt = list(range(200))
    first = place(chooser.choose(IDLE, Demand(200, prompt=PromptNames(prompt)), 0.0))
    again = place(chooser.choose(IDLE, Demand(200, prompt=PromptNames(prompt)), 0.0))
    assert (again == first) is same


def test_counts_picks_by_kind():
    counter = metrics.ROUTING_PICKS.labels("load")
    before = counter._value.get()
    chooser = Chooser(SETTINGS)
    chooser.choose(IDLE, Demand(10), 0.0)
    chooser.choose(fleet(), Demand(10), 0.0)
    assert counter._value.get() == before + 1


# -- what always holds --------------------------------------------------------------------

prompts = st.integers(0, 20_000)


@given(fleets(), prompts, st.integers(0, 2000), st.integers(0, 99), st.data())
def test_never_picks_who_was_filtered(snapshot, prompt, output, turn, data):
    demand = Demand(prompt, output, explain=data.draw(st.booleans()))
    every = [key_of(each) for each in ranks_of(snapshot)]
    keys = st.sampled_from(every) if every else st.nothing()
    found = decide(
        snapshot,
        demand,
        SETTINGS,
        Evidence(
            data.draw(st.dictionaries(keys, prompts)) if every else {},
            (),
            data.draw(st.none() | keys) if every else None,
        ),
        turn,
    )
    left = [key_of(each) for each in survey(snapshot, demand, SETTINGS).candidates]
    if left:
        assert (found.group_id, found.epoch, found.rank) in left
        assert len(found.candidates) <= EXPLAINED
    else:
        assert isinstance(found, NoPick)


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
    found = pick(snapshot, Demand(own), settings, sticky=sticky)
    mean = sum(outstanding) / len(outstanding)
    if outstanding[where] <= mean * settings.session_load_bound + slack:
        assert found.rank == where
        assert found.kind is PickKind.SESSION
    else:
        assert outstanding[found.rank] == min(outstanding)


@given(
    st.lists(st.integers(0, 20_000), min_size=2, max_size=8),
    st.integers(0, 7),
    st.integers(1, 5000),
)
def test_a_prefix_never_overloads_its_rank(outstanding, where, own):
    where %= len(outstanding)
    found = pick(fleet(loads(*outstanding)), Demand(own), matched={("g0", "e", where): own})
    mean = sum(outstanding) / len(outstanding)
    bound = mean * SETTINGS.session_load_bound + SETTINGS.affinity_slack
    assert outstanding[found.rank] <= max(bound, min(outstanding))


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 40), st.integers(1, 3000))
def test_equal_ranks_share_load(size, groups, rounds, tokens):
    assume(size * groups > 1)
    snapshot = fleet(*(loads(*[0] * size, name=f"g{number}") for number in range(groups)))
    chooser = Chooser(SETTINGS)
    taken = Counter()
    for _ in range(rounds):
        found = chooser.choose(snapshot, Demand(tokens), 0.0)
        key = (found.group_id, found.epoch, found.rank)
        taken[key] += 1
        snapshot = with_tokens(snapshot, key, taken[key] * tokens)
    counts = [taken[key_of(each)] for each in ranks_of(snapshot)]
    assert max(counts) - min(counts) <= 1
