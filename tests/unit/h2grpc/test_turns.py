"""How tasks and connections share the event loop, counted in turns."""

import asyncio

import pytest

from serving.h2grpc.turns import TURN, IterationLimit, TaskTurns


class Clock:
    """Shows the time that tasks have pretended to compute."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def turn():
    """Returns the number of turns that the event loop has taken."""
    taken = 0
    running = True

    def count():
        nonlocal taken
        taken += 1
        if running:
            asyncio.get_running_loop().call_soon(count)

    asyncio.get_running_loop().call_soon(count)
    yield lambda: taken
    running = False


async def test_one_task_computes_in_a_turn(turn):
    turns, computed = TaskTurns(), []

    async def work(steps):
        for _ in range(steps):
            await turns.turn()
            computed.append(turn())

    await asyncio.gather(*(work(3) for _ in range(10)))
    assert len(computed) == 30
    assert len(set(computed)) == 30


async def test_tasks_take_turns(turn):
    turns, order = TaskTurns(), []

    async def work(name):
        for _ in range(3):
            await turns.turn()
            order.append(name)

    await asyncio.gather(work("a"), work("b"))
    assert order == ["a", "b"] * 3


async def test_after_a_long_step_all_else_gets_as_much_time():
    clock = Clock()
    turns, paused = TaskTurns(clock), []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(seconds, *args):
        paused.append(seconds)
        return later(0, *args)

    async def work(seconds):
        await turns.turn()
        clock.now += seconds

    loop.call_later = call_later
    try:
        await asyncio.gather(*(work(seconds) for seconds in (TURN / 2, 5 * TURN, TURN / 2)))
        await turns.turn()
    finally:
        del loop.call_later
    assert paused == [pytest.approx(5 * TURN)]


async def test_a_task_that_is_cancelled_while_it_waits_holds_up_no_other():
    turns, computed = TaskTurns(), []

    async def work(name):
        await turns.turn()
        computed.append(name)

    tasks = [asyncio.create_task(work(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await work("d")
    assert computed == ["c", "d"]


async def test_an_allowance_is_for_one_turn():
    allowance = IterationLimit(5)
    assert [allowance.take(3), allowance.take(3), allowance.take(3)] == [3, 2, 0]
    await asyncio.sleep(0)
    assert allowance.take(3) == 3
