"""Poison requests: trials isolate suspects in order; losses identify the cause."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.requests.poison import TRIAL_TOKENS, LossHistory, PoisonTracker, Verdict
from serving.settings import FleetSettings
from tests.support.waiting import loop_turns

LONG = 60.0


def enter(poison_tracker, tokens=4, timeout=LONG):
    return asyncio.create_task(poison_tracker.enter(tokens, timeout))


async def test_one_suspect_for_each_ready_group():
    poison_tracker = PoisonTracker(lambda: 2)
    tasks = [enter(poison_tracker) for _ in range(4)]
    await loop_turns()
    assert [task.done() for task in tasks] == [True, True, False, False]
    tasks[1].result().end()
    await loop_turns()
    assert [task.done() for task in tasks] == [True, True, True, False]
    assert (poison_tracker.running, poison_tracker.waiting) == (2, 1)
    tasks[3].cancel()
    await asyncio.wait(tasks)


async def test_without_a_group_one_suspect_is_let_through():
    poison_tracker = PoisonTracker(lambda: 0)
    tasks = [enter(poison_tracker) for _ in range(2)]
    await loop_turns()
    assert [task.done() for task in tasks] == [True, False]
    tasks[1].cancel()
    await asyncio.wait(tasks)


async def test_a_new_group_starts_another_trial():
    places = 1
    poison_tracker = PoisonTracker(lambda: places)
    tasks = [enter(poison_tracker) for _ in range(2)]
    await loop_turns()
    places = 2
    poison_tracker.wake()
    await loop_turns()
    assert all(task.done() for task in tasks)


async def test_a_trial_ends_with_enough_tokens_and_clears():
    poison_tracker = PoisonTracker(lambda: 1)
    trial = await poison_tracker.enter(4, LONG)
    poison_tracker.placed(trial, ("g0", "e"))
    assert poison_tracker.occupied == {("g0", "e")}
    trial.progress(3)
    assert (trial.alone, poison_tracker.running) == (True, 1)
    trial.progress(4)
    assert (trial.alone, poison_tracker.running) == (False, 0)
    assert not poison_tracker.occupied


async def test_a_trial_that_its_group_did_not_survive_keeps_its_result():
    poison_tracker = PoisonTracker(lambda: 1)
    trial = await poison_tracker.enter(4, LONG)
    poison_tracker.placed(trial, ("g0", "e"))
    trial.end()
    trial.progress(9)
    assert trial.alone


async def test_trials_that_share_a_group_are_not_alone():
    poison_tracker = PoisonTracker(lambda: 3)
    one, two, three = [await poison_tracker.enter(4, LONG) for _ in range(3)]
    poison_tracker.placed(one, ("g0", "e"))
    poison_tracker.placed(two, ("g1", "e"))
    poison_tracker.placed(three, ("g0", "e"))
    assert [each.alone for each in (one, two, three)] == [False, True, False]


async def test_a_wait_for_a_trial_times_out():
    poison_tracker = PoisonTracker(lambda: 1)
    await poison_tracker.enter(4, LONG)
    with pytest.raises(TimeoutError):
        await poison_tracker.enter(4, 0.0)
    assert (poison_tracker.running, poison_tracker.waiting) == (1, 0)


async def test_a_trial_cancelled_as_it_starts_starts_the_next():
    poison_tracker = PoisonTracker(lambda: 1)
    first = await poison_tracker.enter(4, LONG)
    second, third = enter(poison_tracker), enter(poison_tracker)
    await loop_turns()
    first.end()
    second.cancel()
    await asyncio.wait([second, third])
    assert second.cancelled()
    assert (await third).alone
    assert poison_tracker.running == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("enter"), st.just(0)),
            st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 9)),
            st.tuples(st.just("places"), st.integers(0, 4)),
        ),
        max_size=40,
    )
)
def test_no_trial_waits_while_a_group_is_free(steps):
    asyncio.run(play(steps))


async def play(steps):
    places = 1
    poison_tracker = PoisonTracker(lambda: places)
    tasks, out = [], []
    for what, number in steps:
        before = poison_tracker.running
        if what == "enter":
            tasks.append(enter(poison_tracker))
        elif what == "end" and out:
            out.pop(number % len(out)).end()
        elif what == "cancel" and tasks:
            tasks.pop(number % len(tasks)).cancel()
        elif what == "places":
            places = number
            poison_tracker.wake()
        await loop_turns()
        out += [task.result() for task in tasks if task.done()]
        tasks = [task for task in tasks if not task.done()]
        assert poison_tracker.running == len(out)
        assert poison_tracker.waiting == len(tasks)
        assert not tasks or len(out) >= max(places, 1)
        assert len(out) <= max(places, 1, before)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


# -- LossHistory -----------------------------------------------------------------------

SETTINGS = FleetSettings(suspect_tokens=32, suspect_losses=2)
ONCE = FleetSettings(suspect_losses=1)
THRICE = FleetSettings(suspect_losses=3)
NEVER = FleetSettings(suspect_tokens=0)


@pytest.mark.parametrize(
    ("before", "seen", "alone", "settings", "after", "verdict"),
    [
        pytest.param(0, 0, False, SETTINGS, 1, Verdict.SUSPECT, id="first loss"),
        pytest.param(0, 31, False, SETTINGS, 1, Verdict.SUSPECT, id="hardly begun"),
        pytest.param(0, 32, False, SETTINGS, 0, Verdict.INNOCENT, id="ran for a while"),
        pytest.param(1, 0, True, SETTINGS, 2, Verdict.POISON, id="second loss, alone"),
        pytest.param(1, 0, False, SETTINGS, 2, Verdict.SUSPECT, id="second loss, among others"),
        pytest.param(2, 0, False, SETTINGS, 3, Verdict.SUSPECT, id="third loss, among others"),
        pytest.param(2, 5, True, SETTINGS, 3, Verdict.POISON, id="third loss, alone"),
        pytest.param(1, 32, True, SETTINGS, 0, Verdict.INNOCENT, id="cleared by a long run"),
        pytest.param(0, 0, False, ONCE, 1, Verdict.POISON, id="one loss is too many"),
        pytest.param(1, 0, True, THRICE, 2, Verdict.SUSPECT, id="two of three"),
        pytest.param(2, 0, True, THRICE, 3, Verdict.POISON, id="three of three"),
        pytest.param(0, 0, False, NEVER, 0, Verdict.INNOCENT, id="nobody is suspected"),
    ],
)
def test_verdict(before, seen, alone, settings, after, verdict):
    assert LossHistory(before).after_loss(seen, settings, alone=alone) == (
        LossHistory(after),
        verdict,
    )


@pytest.mark.parametrize(
    ("losses", "settings", "tokens"),
    [
        pytest.param(0, SETTINGS, 0, id="none"),
        pytest.param(1, SETTINGS, TRIAL_TOKENS, id="short"),
        pytest.param(2, SETTINGS, 32, id="long"),
        pytest.param(3, SETTINGS, 32, id="no longer than that"),
    ],
)
def test_trial_tokens(losses, settings, tokens):
    assert LossHistory(losses).trial_tokens(settings) == tokens


Losses = st.lists(st.tuples(st.integers(0, 64), st.booleans()), max_size=12)


@given(Losses, st.integers(2, 4))
def test_only_a_request_that_was_alone_is_refused(losses, suspect_losses):
    settings = FleetSettings(suspect_losses=suspect_losses)
    history = LossHistory()
    for seen, alone in losses:
        history, verdict = history.after_loss(seen, settings, alone=alone)
        assert (verdict is Verdict.POISON) <= alone


@given(st.lists(st.integers(0, 31), min_size=4, max_size=4), st.integers(1, 4))
def test_a_request_that_kills_each_group_alone_is_refused_in_time(seen, suspect_losses):
    settings = FleetSettings(suspect_losses=suspect_losses)
    history, verdicts = LossHistory(), []
    for tokens in seen[:suspect_losses]:
        alone = history.trial_tokens(settings) > 0
        history, verdict = history.after_loss(tokens, settings, alone=alone)
        verdicts.append(verdict)
    assert verdicts == [Verdict.SUSPECT] * (suspect_losses - 1) + [Verdict.POISON]
