"""The observation of each pool, and the pool that starts a group for waiting requests."""

import pytest

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.pools import observe, waking_pool
from serving.autoscaler.signals import FleetCounts, Reading, Signal
from tests.unit.autoscaler.fleets import CALM, IDLE, fleet, measured, pool

NOW = 1_000_000.0
A, B = pool("m/a", max_groups=2), pool("m/b", max_groups=2)
OTHER = pool("n/a")


@pytest.mark.parametrize(
    ("targets", "counts", "chosen"),
    [
        pytest.param({"m/a": 0, "m/b": 0}, fleet({}), None, id="nothing-waits"),
        pytest.param({"m/a": 0, "m/b": 0}, fleet({}, parked={"m": 1}), "m/a", id="first"),
        pytest.param({"m/a": 0, "m/b": 1}, fleet({}, parked={"m": 1}), "m/b", id="starting"),
        pytest.param({"m/b": 0}, fleet({}, parked={"m": 1}), "m/b", id="unknown-is-skipped"),
        pytest.param({}, fleet({}, parked={"m": 1}), None, id="all-unknown"),
        pytest.param(
            {"m/a": 1, "m/b": 0}, fleet({"m/a": 1}, {"m": 3}), None, id="the-first-can-grow"
        ),
        pytest.param(
            {"m/a": 2, "m/b": 0}, fleet({"m/a": 2}, {"m": 3}), "m/b", id="the-first-is-full"
        ),
        pytest.param({"m/a": 2, "m/b": 2}, fleet({"m/a": 2}, {"m": 3}), None, id="all-are-full"),
        pytest.param(
            {"m/a": 0, "m/b": 1}, fleet({"m/b": 1}, {"m": 3}), "m/a", id="the-first-is-empty"
        ),
        pytest.param({"m/a": 2, "m/b": 0}, fleet({"m/a": 2}), None, id="no-queue"),
    ],
)
def test_waking_pool(targets, counts, chosen):
    assert waking_pool([A, B], targets, counts, {}, NOW) == chosen


def test_a_pool_that_does_not_get_ready_in_time_is_passed_over():
    counts = fleet({}, parked={"m": 1})
    targets = {"m/a": 1, "m/b": 0}
    for since, chosen in ((599.0, "m/a"), (601.0, "m/b")):
        states = {"m/a": PolicyState(warming_since=NOW - since)}
        assert waking_pool([A, B], targets, counts, states, NOW) == chosen
    late = PolicyState(warming_since=NOW - 601)
    states = {"m/a": late, "m/b": late}
    assert waking_pool([A, B], targets, counts, states, NOW) == "m/a", "rather than none"


def look(pools, targets, counts, readings):
    return observe(pools, targets, counts, readings, {}, NOW)


def test_a_pool_sees_its_own_signals_and_its_part_of_the_queue():
    readings = measured(
        {"m/a": CALM | {Signal.TOKEN_RATE: 900.0}, "m/b": CALM, "n/a": CALM},
        {"m": (4.0, 800.0, 1.5)},
    )
    counts = fleet({"m/a": 3, "m/b": 1, "n/a": 2}, {"m": 4})
    found = look([A, B, OTHER], {"m/a": 3, "m/b": 1, "n/a": 2}, counts, readings)
    a, b, other = found["m/a"], found["m/b"], found["n/a"]
    assert (a.target, a.fleet, a.pool) == (3, FleetCounts(3, 0), "m/a")
    assert a.reading(Signal.TOKEN_RATE).value == 900.0
    assert a.reading(Signal.QUEUE_TOKENS).value == 600.0
    assert b.reading(Signal.QUEUE_TOKENS).value == 200.0
    assert b.reading(Signal.QUEUE_WAIT_P90).value == 1.5
    assert b.reading(Signal.INFLIGHT).value == 8.0, "with the queue of the model"
    assert other.reading(Signal.QUEUE_TOKENS).value == 0.0
    assert other.reading(Signal.INFLIGHT).value == 4.0


def test_parked_requests_are_those_of_one_pool_of_their_model():
    readings = measured({"m/a": IDLE, "m/b": IDLE, "n/a": IDLE}, {"m": (2.0, 50.0, None)})
    targets = dict.fromkeys(("m/a", "m/b", "n/a"), 0)
    found = look([A, B, OTHER], targets, fleet({}, parked={"m": 2}), readings)
    assert found["m/a"].fleet == FleetCounts(0, 2)
    assert found["m/a"].reading(Signal.QUEUE_TOKENS).value == 50.0
    for key in ("m/b", "n/a"):
        assert found[key].fleet == FleetCounts(0, 0)
        assert found[key].reading(Signal.QUEUE_REQUESTS).value == 0.0
        assert found[key].reading(Signal.INFLIGHT).value == 0.0


def test_without_routers_and_prometheus_only_the_numbers_are_known():
    found = look([A, B], {"m/a": 1}, None, measured({}))
    assert list(found) == ["m/a"]
    assert found["m/a"].fleet is None
    assert found["m/a"].signals == {}


def test_all_pools_of_a_model_see_its_lines():
    readings = measured({"m/a": CALM, "m/b": CALM, "n/a": CALM}, {"m": (0.0, 0.0, 0.0)})
    readings.models["m"][Signal.BATCH_LINES] = Reading(7.0)
    found = look([A, B, OTHER], {"m/a": 0, "m/b": 2, "n/a": 1}, None, readings)
    assert found["m/a"].reading(Signal.BATCH_LINES).value == 7.0
    assert found["m/b"].reading(Signal.BATCH_LINES).value == 7.0
    assert found["n/a"].reading(Signal.BATCH_LINES).value is None
