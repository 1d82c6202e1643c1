"""Suspects are kept apart, in order, and nobody is forgotten."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.requests.poison import Quarantine

LONG = 60.0


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


def enter(quarantine, tokens=4, timeout=LONG):
    return asyncio.create_task(quarantine.enter(tokens, timeout))


async def test_one_suspect_for_each_ready_group():
    quarantine = Quarantine(lambda: 2)
    tasks = [enter(quarantine) for _ in range(4)]
    await settled()
    assert [task.done() for task in tasks] == [True, True, False, False]
    tasks[1].result().end()
    await settled()
    assert [task.done() for task in tasks] == [True, True, True, False]
    assert (quarantine.running, quarantine.waiting) == (2, 1)
    tasks[3].cancel()
    await asyncio.wait(tasks)


async def test_without_a_group_one_goes_on_to_wait_for_one():
    quarantine = Quarantine(lambda: 0)
    tasks = [enter(quarantine) for _ in range(2)]
    await settled()
    assert [task.done() for task in tasks] == [True, False]
    tasks[1].cancel()
    await asyncio.wait(tasks)


async def test_a_group_that_comes_lets_another_one_in():
    places = 1
    quarantine = Quarantine(lambda: places)
    tasks = [enter(quarantine) for _ in range(2)]
    await settled()
    places = 2
    quarantine.wake()
    await settled()
    assert all(task.done() for task in tasks)


async def test_probation_ends_with_enough_tokens_and_clears():
    quarantine = Quarantine(lambda: 1)
    probation = await quarantine.enter(4, LONG)
    quarantine.placed(probation, ("g0", "e"))
    assert quarantine.occupied == {("g0", "e")}
    probation.progress(3)
    assert (probation.alone, quarantine.running) == (True, 1)
    probation.progress(4)
    assert (probation.alone, quarantine.running) == (False, 0)
    assert not quarantine.occupied


async def test_a_probation_that_its_group_did_not_survive_keeps_what_it_says():
    quarantine = Quarantine(lambda: 1)
    probation = await quarantine.enter(4, LONG)
    quarantine.placed(probation, ("g0", "e"))
    probation.end()
    probation.progress(9)
    assert probation.alone


async def test_who_shares_a_group_is_not_alone():
    quarantine = Quarantine(lambda: 3)
    one, two, three = [await quarantine.enter(4, LONG) for _ in range(3)]
    quarantine.placed(one, ("g0", "e"))
    quarantine.placed(two, ("g1", "e"))
    quarantine.placed(three, ("g0", "e"))
    assert [each.alone for each in (one, two, three)] == [False, True, False]


async def test_who_waits_too_long_is_told():
    quarantine = Quarantine(lambda: 1)
    await quarantine.enter(4, LONG)
    with pytest.raises(TimeoutError):
        await quarantine.enter(4, 0.0)
    assert (quarantine.running, quarantine.waiting) == (1, 0)


async def test_who_is_cancelled_when_its_turn_has_just_come_gives_it_to_the_next():
    quarantine = Quarantine(lambda: 1)
    first = await quarantine.enter(4, LONG)
    second, third = enter(quarantine), enter(quarantine)
    await settled()
    first.end()
    second.cancel()
    await asyncio.wait([second, third])
    assert second.cancelled()
    assert (await third).alone
    assert quarantine.running == 1


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
def test_there_is_never_room_while_somebody_waits(steps):
    asyncio.run(play(steps))


async def play(steps):
    places = 1
    quarantine = Quarantine(lambda: places)
    tasks, out = [], []
    for what, number in steps:
        before = quarantine.running
        if what == "enter":
            tasks.append(enter(quarantine))
        elif what == "end" and out:
            out.pop(number % len(out)).end()
        elif what == "cancel" and tasks:
            tasks.pop(number % len(tasks)).cancel()
        elif what == "places":
            places = number
            quarantine.wake()
        await settled()
        out += [task.result() for task in tasks if task.done()]
        tasks = [task for task in tasks if not task.done()]
        assert quarantine.running == len(out)
        assert quarantine.waiting == len(tasks)
        assert not tasks or len(out) >= max(places, 1)
        assert len(out) <= max(places, 1, before)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
