import pytest

from loadtest.simulation.scalers import FixedSize, QueueRule
from serving.autoscaler.signals import MISSING, Observation, Reading, Signal


def seen(target, waiting):
    reading = MISSING if waiting is None else Reading(waiting)
    return Observation(target, None, {Signal.QUEUE_REQUESTS: reading})


def rule(**options):
    return QueueRule(5, Signal.QUEUE_REQUESTS, 1, 100, "waiting", **options)


@pytest.mark.parametrize(
    ("target", "waiting", "expected"),
    [
        pytest.param(4, 40, 8, id="twice the mean: twice the groups"),
        pytest.param(10, 1000, 20, id="at most twice as many"),
        pytest.param(1, 1000, 5, id="or four more"),
        pytest.param(10, 54, 10, id="within tolerance"),
        pytest.param(60, 900, 100, id="at most the bound"),
        pytest.param(7, None, 7, id="not known: stay"),
    ],
)
def test_more(target, waiting, expected):
    assert rule().target(seen(target, waiting), 0.0) == expected


def test_fewer_only_after_the_window():
    one = rule(down_window=60.0)
    assert one.target(seen(10, 50), 0.0) == 10
    assert one.target(seen(10, 5), 15.0) == 10
    assert one.target(seen(10, 5), 59.0) == 10
    assert one.target(seen(10, 5), 61.0) == 1


def test_a_fixed_size_is_fixed():
    assert FixedSize(7).target(seen(3, 1000), 5.0) == 7
    assert FixedSize(7).name == "fixed 7"
