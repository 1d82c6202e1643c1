"""Imbalance, hottest experts, and the window of recent counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fleet.expert_balance import SPAN, ExpertWindow, HotExpert, hottest, imbalances
from serving.link.v1 import link_pb2
from serving.routing.snapshot import (
    GroupSnapshot,
    LayerTokens,
    MemberState,
    RankSnapshot,
    RecentExperts,
)


def name(layer):
    return f"model.layers.{layer}.mlp.experts"


def group(*ranks, ids=None):
    """Build a group; each rank is a dict from layer number to the tokens of its experts."""
    shots = []
    for index, layers in enumerate(ranks):
        local = ids[index] if ids else range(index * 2, index * 2 + 2)
        recent = tuple(LayerTokens(name(layer), tuple(t)) for layer, t in layers.items())
        shots.append(
            RankSnapshot(
                "g",
                "e",
                index,
                True,
                local_expert_ids=tuple(local),
                recent_experts=RecentExperts(recent),
            )
        )
    return GroupSnapshot("g", "e", MemberState.READY, "", 0.0, len(ranks), 4, tuple(shots))


def shown(found):
    return [(each.layers, round(each.experts, 3), round(each.ranks, 3)) for each in found]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        pytest.param([{1: [5, 5]}, {1: [5, 5]}], [("all", 1.0, 1.0)], id="even"),
        pytest.param([{1: [9, 1]}, {1: [1, 9]}], [("all", 1.8, 1.0)], id="experts, not ranks"),
        pytest.param([{1: [6, 6]}, {1: [0, 0]}], [("all", 2.0, 2.0)], id="one rank does it all"),
        pytest.param([{1: [0, 0]}, {1: [0, 0]}], [], id="idle"),
        pytest.param([{}, {}], [], id="nobody counts"),
        pytest.param(
            [{1: [5, 5], 2: [5, 5]}, {1: [5, 5], 2: [0, 0]}],
            [("all", 1.5, 1.5), ("1", 1.0, 1.0), ("2", 2.0, 2.0)],
            id="one of two layers",
        ),
    ],
)
def test_imbalance(ranks, expected):
    assert shown(imbalances(group(*ranks))) == expected


def test_opposite_layers_do_not_cancel_out():
    found = imbalances(group({1: [8, 0], 2: [0, 8]}, {1: [0, 0], 2: [0, 0]}))
    assert shown(found)[0] == ("all", 4.0, 2.0)


def test_deep_models_have_four_bands_in_order():
    layers = {layer: [1, 1] for layer in range(3, 61)}
    found = imbalances(group(layers, layers))
    assert [each.layers for each in found] == ["all", "3-16", "17-31", "32-45", "46-60"]


def test_hottest_experts_come_first_with_where_they_are():
    found = hottest(group({1: [9, 1]}, {1: [1, 1]}), most=2)
    assert found == (
        HotExpert(name(1), 0, (0,), 9, 3.0),
        HotExpert(name(1), 1, (0,), 1, 1 / 3),
    )


def test_a_replicated_expert_is_one_expert_on_two_ranks():
    found = hottest(group({1: [4, 1]}, {1: [4, 1]}, ids=[(0, 1), (0, 2)]), most=1)
    assert found == (HotExpert(name(1), 0, (0, 1), 8, 2.4),)


counts = st.lists(st.integers(0, 10**9), min_size=2, max_size=2)


@given(st.lists(st.dictionaries(st.integers(0, 70), counts, max_size=12), min_size=1, max_size=6))
def test_labels_are_few_and_ratios_at_least_one(ranks):
    found = imbalances(group(*ranks))
    assert len(found) <= 5
    assert len({each.layers for each in found}) == len(found)
    for each in found:
        assert 1 - 1e-9 <= each.ranks <= len(ranks) + 1e-9
        assert 1 - 1e-9 <= each.experts <= 2 * len(ranks) + 1e-9


@given(st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_short_way_for_experts_on_one_rank_each_is_the_long_way(tokens):
    ids = [range(3 * index, 3 * index + 3) for index in range(len(tokens))]
    flat = [count for rank in tokens for count in rank]
    found = imbalances(group(*({1: rank} for rank in tokens), ids=ids))
    if not sum(flat):
        assert found == ()
        return
    assert found[0].experts == pytest.approx(max(flat) * len(flat) / sum(flat))
    sums = [sum(rank) for rank in tokens]
    assert found[0].ranks == pytest.approx(max(sums) * len(sums) / sum(sums))


def test_counts_that_fit_no_experts_are_left_out():
    found = imbalances(group({1: [9, 1]}, {1: [5, 5]}, ids=[(), (0, 1)]))
    assert shown(found) == [("all", 1.0, 1.0)]


# -- ExpertWindow ----------------------------------------------------------------------


def report(window, now, *tokens, layer="model.layers.1.mlp.experts"):
    recent = window.update([link_pb2.LayerExpertLoad(layer=layer, tokens=tokens)], now)
    (found,) = recent.layers()
    assert found.layer == layer
    return found.tokens


def test_what_is_older_than_two_spans_is_forgotten():
    window = ExpertWindow()
    assert report(window, 0.0, 10, 0) == (10, 0)
    assert report(window, SPAN - 1, 20, 0) == (20, 0)
    assert report(window, SPAN, 30, 0) == (30, 0)
    assert report(window, 2 * SPAN, 40, 5) == (10, 5)
    assert report(window, 3 * SPAN - 1, 40, 6) == (10, 6)
    assert report(window, 3 * SPAN, 40, 6) == (0, 1)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param((3, 2), (3, 2), id="the engine counts anew"),
        pytest.param((50, 50, 9), (50, 50, 9), id="other experts are here"),
    ],
)
def test_counts_that_do_not_follow_stand_for_themselves(after, expected):
    window = ExpertWindow()
    for turn in range(3):
        report(window, turn * SPAN, 40, 40)
    assert report(window, 2 * SPAN + 1, *after) == expected


def test_without_counts_there_is_nothing():
    assert list(ExpertWindow().update([], 1.0).layers()) == []
