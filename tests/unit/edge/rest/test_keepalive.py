"""When a stream counts as silent."""

import asyncio

import pytest

from serving.edge.rest.keepalive import KeepAlive

SHORT = 0.01  # seconds; how long a test takes says nothing


@pytest.fixture
def keep():
    made = []

    def start(speak, interval=SHORT):
        made.append(KeepAlive(interval, speak))
        return made[-1]

    yield start
    for keepalive in made:
        keepalive.stop()


async def test_speaks_again_and_again_while_it_is_silent(keep):
    spoken = asyncio.Semaphore(0)

    async def speak():
        spoken.release()

    keep(speak)
    async with asyncio.timeout(10):
        for _ in range(3):
            await spoken.acquire()


async def test_is_quiet_while_something_is_heard(keep):
    spoken = []

    async def speak():
        spoken.append(1)

    keepalive = keep(speak, interval=1000.0)
    # As if the interval had passed, with something heard just now: it is not yet time.
    keepalive.heard()
    keepalive._look()
    await asyncio.sleep(0)
    assert not spoken
    keepalive._heard_at -= 1000.0
    keepalive._look()
    await asyncio.sleep(0)
    assert spoken == [1]


async def test_waits_for_a_client_who_does_not_read(keep):
    begun = []

    async def speak():
        begun.append(1)
        await asyncio.Event().wait()

    keepalive = keep(speak, interval=1000.0)
    keepalive._heard_at -= 1000.0
    for _ in range(3):
        keepalive._look()
        await asyncio.sleep(0)
    assert begun == [1]


async def test_stop_ends_timer_and_task(keep):
    before = asyncio.all_tasks()

    async def speak():
        await asyncio.Event().wait()

    keepalive = keep(speak)
    async with asyncio.timeout(10):
        while asyncio.all_tasks() == before:  # noqa: ASYNC110  what is awaited is a task's birth
            await asyncio.sleep(SHORT)
    keepalive.stop()
    keepalive.stop()
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != before:  # noqa: ASYNC110  and its end
            await asyncio.sleep(SHORT)
    assert keepalive._timer is None
