"""ExpertWindow: recent counts from cumulative ones."""

import pytest

from serving.fleet.expert_window import SPAN, ExpertWindow
from serving.link.v1 import link_pb2


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
