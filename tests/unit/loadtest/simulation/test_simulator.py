"""Invariants of the simulation, and the policy in it."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.simulation.scalers import FixedSize, OurPolicy, QueueRule
from loadtest.simulation.simulated_request import SimulatedRequest
from loadtest.simulation.simulator import Simulator
from serving.autoscaler.signals import Signal
from serving.routing.snapshot import MemberState
from tests.unit.loadtest.simulation.worlds import calibration, steady, world
from tests.unit.loadtest.simulation.worlds import settings as settings_of

SCALING = {
    "min_groups": 1,
    "max_groups": 6,
    "ttft_slo": 0.5,
    "itl_slo": 0.1,
    "queue_wait_slo": 0.5,
    "window": 20.0,
    "down_window": 30.0,
    "drain_timeout": 2.0,
}


class Watched(Simulator):
    """Checks invariants after every event."""

    def __init__(self, *arguments, **options):
        self.times = [0.0]
        self.ended = Counter()
        super().__init__(*arguments, **options)

    def _advance(self, at):
        super()._advance(at)
        self.times.append(self.now)
        for group in self.router.groups.values():
            for rank in group.ranks:
                assert 0 <= rank.kv_used <= rank.calibration.kv_tokens
                assert len(rank.running) + len(rank.prefilling) <= rank.calibration.max_num_seqs
                assert rank.outstanding >= 0

    def _end(self, sequence):
        self.ended[sequence.number] += 1
        super()._end(sequence)


class Restless(FixedSize):
    """Requests a different number of groups at every decision, so that groups end in every way."""

    def target(self, seen, now):
        del seen
        return 1 + int(now * 7) % self.groups


requests = st.lists(
    st.tuples(st.floats(0, 20), st.integers(1, 900), st.integers(1, 120)), min_size=1, max_size=60
)


def made(rows):
    rows = sorted(rows)
    return [
        SimulatedRequest(number, at, min(prompt, 1023), min(output, 1024 - min(prompt, 1023)))
        for number, (at, prompt, output) in enumerate(rows)
    ]


@settings(max_examples=40, deadline=None)
@given(
    requests,
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.integers(1100, 3000),
)
def test_each_request_ends_once_whatever_comes_and_goes(rows, ranks, groups, chunked, restless, kv):
    cal = calibration(
        ranks=ranks, chunked_prefill=chunked, batch_tokens=1024, kv_tokens=kv, startup=3.0
    )
    scaling = settings_of(**SCALING, admission={"queue_requests": 20})
    scaler = Restless(groups, interval=1.3) if restless else FixedSize(groups)
    run = world(cal, scaler, scaling, groups=groups, seconds=25.0, kind=Watched)
    arrivals = made(rows)
    found = run.run(arrivals)
    assert run.ended == Counter(range(len(rows)))
    assert found.requests == len(rows)
    assert len(found.ttft) + found.refused == len(rows)
    assert run.times == sorted(run.times)
    assert found.output_tokens == sum(s.output_tokens for s in arrivals if not s.refused)
    for sequence in arrivals:
        if not sequence.refused:
            assert sequence.at < sequence.first_at <= sequence.ended_at
            assert sequence.left == 0
    for group in run.router.groups.values():
        assert not group.inflight
        assert all(rank.kv_used == rank.outstanding == 0 for rank in group.ranks)


@settings(max_examples=10, deadline=None)
@given(requests, st.integers(1, 5))
def test_equal_seeds_give_equal_results(rows, seed):
    def once():
        scaler = OurPolicy(settings_of(**SCALING).autoscaler, 1.0)
        run = world(scaler=scaler, scaling=settings_of(**SCALING), seconds=25.0, seed=seed)
        return run.run(made(rows)), scaler.reasons

    assert once() == once()


def groups_over_time(scaler, scaling, load, seconds):
    """Run; return (time, requested groups) and the outcome."""
    seen = []

    class Noting(Simulator):
        def _decide(self):
            super()._decide()
            seen.append((self.now, self.asked, self.router.ready))

    found = world(scaler=scaler, scaling=scaling, seconds=seconds, kind=Noting).run(load)
    return seen, found


def step():
    """A load that rises and falls; one group serves about 20 of these requests per second."""
    low, high = steady(2, 0, 40), steady(50, 40, 120, first=1000)
    return [*low, *high, *steady(2, 120, 320, first=20_000)]


def test_our_policy_follows_a_step_up_and_down():
    scaling = settings_of(**SCALING)
    seen, found = groups_over_time(OurPolicy(scaling.autoscaler, 1.0), scaling, step(), 320.0)
    before = [asked for at, asked, _ in seen if at < 40]
    high = [asked for at, asked, _ in seen if 90 < at < 120]
    after = [asked for at, asked, _ in seen if at > 310]
    assert set(before) == {1}
    assert min(high) >= 3
    assert set(after) == {1}
    assert max(ready for _, _, ready in seen) >= 3
    assert found.requests == len(step())
    assert found.good > 0.25 * found.requests
    # Groups cost GPU time from when they are requested until the end of their drain.
    mean = sum(asked for _, asked, _ in seen) / len(seen)
    assert 0.9 * mean < found.group_seconds / 320 < 1.1 * mean + 0.2


def test_a_queue_rule_follows_too():
    scaling = settings_of(**SCALING)
    rule = QueueRule(8, Signal.INFLIGHT, 1, 6, "ongoing", down_window=30.0)
    seen, _ = groups_over_time(rule, scaling, step(), 320.0)
    assert max(asked for _, asked, _ in seen) >= 3
    assert seen[-1][1] == 1


def test_a_parked_request_wakes_a_fleet_of_none():
    scaling = settings_of(**SCALING | {"min_groups": 0})
    scaler = OurPolicy(scaling.autoscaler, 1.0)
    run = world(scaler=scaler, scaling=scaling, groups=0, seconds=60.0)
    found = run.run(steady(1, 0, 3))
    assert found.refused == 0
    assert 20 < min(found.ttft) < 35
    assert scaler.reasons[0][1] == 1
    assert "parked" in scaler.reasons[0][2]


def test_no_group_takes_work_before_its_start_is_over():
    run = world(scaler=Restless(3, interval=1.0), groups=1, seconds=30.0)
    found = run.run(steady(2, 0, 10))
    states = {group.state for group in run.router.groups.values()}
    assert states <= {MemberState.READY, MemberState.JOINING}
    assert found.requests == 20


def test_a_sample_of_a_fleet_does_about_what_the_whole_does():
    """With every second group and request, latencies agree within a few percent."""
    scaling = settings_of()
    whole = world(scaling=scaling, groups=8, seconds=20.0).run(steady(100, 0, 20))
    half = world(scaling=scaling, groups=8, seconds=20.0, sample=2).run(steady(50, 0, 20))
    assert half.group_seconds == whole.group_seconds
    mean = [sum(found.ttft) / len(found.ttft) for found in (whole, half)]
    assert abs(mean[1] / mean[0] - 1) < 0.1
