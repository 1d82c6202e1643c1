"""Scorers: the formulas of deploy/docs/routing.md, always between 0 and 1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing import scorers
from serving.routing.decision import RoutingRequest
from serving.routing.scorers import SCORERS, AffinityHints, ScoringContext
from serving.settings import RoutingSettings, RoutingWeights
from tests.support.fleets import fleet, fleets, group, loads, rank, ranks_of

STRICT = RoutingSettings(affinity_slack=0, session_load_bound=1.5, history_trust=0.5)


def context(snapshot, request, settings=STRICT, **hints):
    return ScoringContext.of(
        snapshot, ranks_of(snapshot), request, settings, AffinityHints(**hints)
    )


def near(*expected):
    return pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("outstanding", "own", "expected"),
    [
        pytest.param((0, 0), 100, (1, 1), id="equal"),
        pytest.param((0, 100), 100, (1, 1 / 2), id="one like it ahead"),
        pytest.param((0, 300), 100, (1, 1 / 4), id="three like it ahead"),
        pytest.param((1000, 1100), 100, (1, 11 / 12), id="little difference where all are busy"),
        pytest.param((0, 1), 0, (1, 1 / 2), id="a request that needs nothing"),
    ],
)
def test_load(outstanding, own, expected):
    assert scorers.load(context(fleet(loads(*outstanding)), RoutingRequest(own))) == near(*expected)


def test_kv_room():
    snapshot = fleet(group(rank(0, kv=0.25), rank(1, kv=1.2), rank(2, kv=-0.5)))
    assert scorers.kv_room(context(snapshot, RoutingRequest(1))) == near(0.75, 0, 1)


@pytest.mark.parametrize(
    ("outstanding", "matched", "guessed", "expected"),
    [
        pytest.param((0, 0), {1: 60}, (), (0, 0.6), id="share of the prompt"),
        pytest.param((0, 0), {0: 50, 1: 100}, (), (0.5, 1), id="more is better"),
        pytest.param((0, 0), {0: 100, 1: 100}, (1,), (1, 0.5), id="a guess counts half"),
        pytest.param((0, 0), {1: 500}, (), (0, 1), id="never more than all"),
        pytest.param((0, 90, 90), {1: 100}, (), (0, 1, 0), id="busy, within the bound"),
        pytest.param((0, 0, 90), {2: 100}, (), (0, 0, 0), id="past the bound"),
    ],
)
def test_prefix(outstanding, matched, guessed, expected):
    found = scorers.prefix(
        context(
            fleet(loads(*outstanding)),
            RoutingRequest(100),
            matched={("g0", "e", index): tokens for index, tokens in matched.items()},
            guessed={("g0", "e", index) for index in guessed},
        )
    )
    assert found == near(*expected)


@pytest.mark.parametrize(
    ("outstanding", "slack", "expected"),
    [
        pytest.param((0, 0), 0, (0, 1), id="idle"),
        pytest.param((30, 90), 0, (0, 1), id="at the bound"),
        pytest.param((30, 91), 0, (0, 0), id="past the bound"),
        pytest.param((0, 100), 24, (0, 0), id="slack used up"),
        pytest.param((0, 100), 25, (0, 1), id="slack forgives"),
    ],
)
def test_session(outstanding, slack, expected):
    settings = RoutingSettings(affinity_slack=slack)
    found = scorers.session(
        context(fleet(loads(*outstanding)), RoutingRequest(1), settings, sticky=("g0", "e", 1))
    )
    assert found == near(*expected)


@pytest.mark.parametrize(
    ("groups", "own", "expected"),
    [
        pytest.param((loads(0, 0),), 10, (1, 1), id="equal"),
        pytest.param((loads(0, 100),), 10, (1, 100 / 110), id="the busiest gets no more"),
        pytest.param((loads(40, 0, 100),), 10, (1, 1, 100 / 110), id="room below the busiest"),
        pytest.param(
            (loads(0, 100), loads(30, 30, name="g1")),
            10,
            (0.4, 40 / 110, 1, 1),
            id="the group whose busiest is least",
        ),
    ],
)
def test_balance(groups, own, expected):
    assert scorers.balance(context(fleet(*groups), RoutingRequest(own))) == near(*expected)


@pytest.mark.parametrize(
    ("scorer", "hints"),
    [(scorers.prefix, {}), (scorers.session, {})],
    ids=["no match", "no session"],
)
def test_nothing_to_say(scorer, hints):
    assert scorer(context(fleet(loads(0, 0)), RoutingRequest(10), **hints)) is None


def test_each_scorer_has_a_weight():
    assert set(SCORERS) == set(RoutingWeights.model_fields)


@given(fleets().filter(ranks_of), st.integers(0, 10_000), st.integers(0, 2000), st.data())
def test_scores_are_between_0_and_1(snapshot, prompt, output, data):
    keys = st.sampled_from([each.rank_id for each in ranks_of(snapshot)])
    found = context(
        snapshot,
        RoutingRequest(prompt, output),
        RoutingSettings(affinity_slack=data.draw(st.integers(0, 9000))),
        matched=data.draw(st.dictionaries(keys, st.integers(0, 20_000))),
        guessed=data.draw(st.sets(keys)),
        sticky=data.draw(st.none() | keys),
    )
    for scorer in SCORERS.values():
        scores = scorer(found)
        if scores is not None:
            assert len(scores) == len(found.candidates)
            assert all(0 <= score <= 1 for score in scores)
