"""The control loop with fakes, including failures of its sources."""

import asyncio

import pytest
import structlog

from serving.autoscaler.decision import PolicyState, explain
from serving.autoscaler.loop import Autoscaler
from serving.autoscaler.prometheus import SignalSnapshot
from serving.autoscaler.recording import load_state, read_recording
from serving.autoscaler.signals import FleetCounts
from tests.support.autoscaler_metrics import sample
from tests.support.clock import ManualClock
from tests.support.fake_actuator import FakeActuator
from tests.unit.autoscaler.observations import observation, settings


class Source:
    def __init__(self, look):
        self.answer = look

    async def read(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def seen(ready=2, parked=0, **changes) -> SignalSnapshot:
    found = observation(2, **changes)
    return SignalSnapshot(FleetCounts(ready, parked), found.signals)


HOT = seen(ttft_p90=1.2)
BLIND = SignalSnapshot(FleetCounts(2, 0), {}, "Prometheus does not answer")


def autoscaler(look, groups=2, *, dry_run=False, scaling=None):
    actuator, source = FakeActuator(groups), Source(look)
    made = Autoscaler(
        source, actuator, scaling or settings(), ManualClock(1_000_000.0), gpus=2.0, dry_run=dry_run
    )
    return made, actuator, source


def failures(stage):
    return sample("failures_total", stage=stage)


async def test_a_decision_is_carried_out_and_told():
    made, actuator, _ = autoscaler(HOT)
    cycle = await made.run_once()
    assert actuator.groups == 3
    assert cycle.decision.reason.startswith("slo pressure")
    assert sample("target_groups") == 3
    assert sample("blind") == 0
    assert sample("vote_groups", rule="slo pressure") == 3


async def test_a_dry_run_changes_nothing():
    made, actuator, _ = autoscaler(HOT, dry_run=True)
    assert (await made.run_once()).decision.target == 3
    assert actuator.asked == []


async def test_prometheus_away_is_a_hold_and_a_metric():
    before = failures("prometheus")
    made, actuator, _ = autoscaler(BLIND)
    cycle = await made.run_once()
    assert cycle.problem == "Prometheus does not answer"
    assert cycle.decision.blind
    assert actuator.asked == []
    assert sample("blind") == 1
    assert failures("prometheus") == before + 1


async def test_parked_requests_start_a_group_while_prometheus_is_away():
    made, actuator, _ = autoscaler(SignalSnapshot(FleetCounts(0, 2), {}, "away"), groups=0)
    await made.run_once()
    assert actuator.groups == 1


async def test_an_actuator_that_cannot_say_its_target_is_a_hold():
    before = failures("target")
    made, actuator, _ = autoscaler(HOT)
    actuator.failing = "Ray is away"
    assert await made.run_once() is None
    assert failures("target") == before + 1


async def test_a_scale_that_fails_is_tried_again():
    made, actuator, _ = autoscaler(HOT)
    scale, tries = actuator.scale, []

    async def fail_once(groups):
        tries.append(groups)
        actuator.failing = "conflict" if len(tries) == 1 else ""
        await scale(groups)

    actuator.scale = fail_once
    await made.run_once()
    actuator.failing = ""
    assert actuator.groups == 2
    await made.run_once()
    assert actuator.groups == 3


async def run_turns(made, count, leading=lambda: True):
    shown, pauses = [], []

    async def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == count:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await made.run(leading, pause, shown.append)
    return shown, pauses


async def test_it_turns_every_interval_until_it_is_cancelled():
    made, _, _ = autoscaler(HOT)
    shown, pauses = await run_turns(made, 3)
    assert len(shown) == 3
    assert pauses == [5.0] * 3


async def test_who_does_not_lead_does_nothing():
    made, actuator, _ = autoscaler(HOT)
    shown, _ = await run_turns(made, 3, leading=lambda: False)
    assert shown == []
    assert actuator.asked == []


async def test_a_defect_ends_a_turn_and_not_the_process():
    made, actuator, source = autoscaler(ValueError("a defect"))

    async def mend(_seconds):
        if source.answer is HOT:
            raise asyncio.CancelledError
        source.answer = HOT

    with pytest.raises(asyncio.CancelledError):
        await made.run(lambda: True, mend)
    assert actuator.groups == 3


async def test_what_it_sees_and_spends_is_kept(tmp_path):
    scaling = settings(
        record_file=str(tmp_path / "seen.jsonl"), state_file=str(tmp_path / "state.json")
    )
    made, _, _ = autoscaler(HOT, scaling=scaling)
    await made.run_once()
    await made.run_once()
    lines = list(read_recording(tmp_path / "seen.jsonl"))
    assert [item.target for _, item in lines] == [2, 3]
    assert lines[0][1].signals == HOT.signals
    assert load_state(tmp_path / "state.json").spent_at == 1_000_000.0


async def test_a_full_disk_stops_nothing(tmp_path):
    scaling = settings(
        record_file=str(tmp_path / "no" / "f"), state_file=str(tmp_path / "no" / "g")
    )
    made, actuator, _ = autoscaler(HOT, scaling=scaling)
    await made.run_once()
    assert actuator.groups == 3


def test_without_a_state_file_it_begins_anew(tmp_path):
    assert load_state(tmp_path / "none") == PolicyState()


# -- notices --------------------------------------------------------------------------------------


async def test_a_number_that_cannot_change_is_told():
    made, _, _ = autoscaler(HOT, scaling=settings(min_groups=2, max_groups=2))
    [notice] = (await made.run_once()).notices
    assert "both 2" in notice
    assert "autoscaler.max_groups" in notice
    made, _, _ = autoscaler(HOT)
    assert (await made.run_once()).notices == ()


async def test_notices_are_logged_once_and_when_they_no_longer_hold():
    made, actuator, _ = autoscaler(HOT)
    found = ["a right is missing"]
    actuator.notices = lambda: tuple(found)
    with structlog.testing.capture_logs() as logs:
        await made.run_once()
        await made.run_once()
        found.clear()
        actuator.failing = "away"
        assert await made.run_once() is None
    logged = [(entry["event"], entry["text"]) for entry in logs if "text" in entry]
    assert logged == [
        ("warning", "a right is missing"),
        ("warning cleared", "a right is missing"),
    ]


async def test_explain_begins_with_the_notices():
    made, actuator, _ = autoscaler(HOT)
    actuator.notices = lambda: ("do something about it",)
    cycle = await made.run_once()
    text = explain(cycle.decision, cycle.observation, cycle.problem, cycle.notices)
    assert text.startswith("notices\n  - do something about it\nsignals\n")
    assert explain(cycle.decision, cycle.observation).startswith("signals\n")
