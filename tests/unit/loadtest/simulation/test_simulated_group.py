"""The steps of a group, computed by hand."""

import pytest

from loadtest.simulation.simulated_group import HORIZON, SimulatedGroup
from serving.routing.snapshot import MemberState
from tests.unit.loadtest.simulation.worlds import calibration, sequences, world


def run(group, *submits):
    """Submit (at, rank, sequence) and run until the group is idle; return the ends of its steps."""
    ends = []
    todo = list(submits)
    while todo or group.until is not None:
        if todo and (group.until is None or todo[0][0] <= group.until):
            at, rank, sequence = todo.pop(0)
            group.submit(rank, sequence, at)
            continue
        now = group.until
        ends.append(round(now, 6))
        for sequence in group.finish(now).ended:
            sequence.ended_at = now
        group.start(now)
    return ends


def test_two_requests_by_hand():
    """A's prompt: 10 + 10 ms. B's: 10 + 1 + 5 ms beside A's second token. Then 12 ms for both."""
    a, b = sequences((0.0, 100, 3), (0.005, 50, 2))
    ends = run(SimulatedGroup("g", calibration(), 0.0), (0.0, 0, a), (0.005, 0, b))
    assert ends == [0.020, 0.036, 0.048]
    assert (a.first_at, a.ended_at) == pytest.approx((0.020, 0.048))
    assert (b.first_at, b.ended_at) == pytest.approx((0.036, 0.048))
    assert a.itl == pytest.approx(0.014)


def test_ranks_step_together_at_the_busiest_ones_pace():
    a, b = sequences((0.0, 100, 2), (0.0, 300, 2))
    ends = run(SimulatedGroup("g", calibration(ranks=2), 0.0), (0.0, 0, a), (0.0, 1, b))
    # The first request begins a step at once, the second joins the next one.
    assert ends == pytest.approx([0.020, 0.020 + 0.041, 0.061 + 0.011])
    assert b.first_at == pytest.approx(0.061)


@pytest.mark.parametrize(
    ("chunked", "ends"),
    [
        pytest.param(True, [0.060, 0.110, 0.121], id="in pieces of 500"),
        pytest.param(False, [0.100, 0.111], id="whole, although larger than a step"),
    ],
)
def test_a_long_prompt(chunked, ends):
    (one,) = sequences((0.0, 900, 2))
    cal = calibration(chunked_prefill=chunked, batch_tokens=500)
    assert run(SimulatedGroup("g", cal, 0.0), (0.0, 0, one)) == pytest.approx(ends)


def test_steps_without_change_are_one_event():
    (one,) = sequences((0.0, 10, 1000))
    ends = run(SimulatedGroup("g", calibration(), 0.0), (0.0, 0, one))
    assert len(ends) == 1 + -(-999 // int(HORIZON / 0.011))
    assert ends[-1] == pytest.approx(0.011 + 999 * 0.011)


def test_an_arrival_ends_a_run_of_steps_at_the_next_step():
    a, b = sequences((0.0, 10, 40), (0.1, 10, 1))
    ends = run(SimulatedGroup("g", calibration(), 0.0), (0.0, 0, a), (0.1, 0, b))
    assert ends[:3] == pytest.approx([0.011, 0.110, 0.122])
    assert b.ended_at == pytest.approx(0.122)
    assert a.ended_at == pytest.approx(0.122 + 29 * 0.011)


def test_the_kv_cache_keeps_the_next_one_waiting():
    a, b = sequences((0.0, 100, 50), (0.0, 100, 50))
    group = SimulatedGroup("g", calibration(kv_tokens=299, max_model_len=200), 0.0)
    group.submit(0, a, 0.0)
    group.submit(0, b, 0.0)
    group.finish(group.until)
    group.start(0.02)
    rank = group.snapshot().ranks[0]
    assert rank.load.waiting_requests == 1
    assert rank.load.kv_usage == pytest.approx(150 / 299)
    assert rank.outstanding_tokens == 49 + 150


def test_what_is_evicted_goes_on_where_it_was():
    (one,) = sequences((0.0, 100, 50))
    group = SimulatedGroup("g", calibration(), 0.0, state=MemberState.READY)
    group.submit(0, one, 0.0)
    group.finish(group.until)
    group.start(0.02)
    group.finish(0.02 + 45 * 0.011)
    assert group.evict() == [one]
    one.resume()
    assert one.prompt_tokens == 100 + 50 - one.left
    assert one.output_tokens == 50
    assert group.snapshot().ranks[0].outstanding_tokens == 0


def test_the_whole_model_gives_what_the_hand_gave():
    a, b = sequences((0.0, 100, 3), (0.005, 50, 2))
    found = world(calibration(overhead=0.002)).run([a, b])
    assert list(found.ttft) == pytest.approx([0.022, 0.033])
    assert list(found.latency) == pytest.approx([0.050, 0.045])
    assert (found.good, found.requests, found.output_tokens) == (2, 2, 5)
    assert found.group_seconds == pytest.approx(10.0)
    assert found.busy_seconds == pytest.approx(0.048)
