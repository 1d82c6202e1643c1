"""When a stream counts as idle, and gets a comment."""

import asyncio

import pytest

from serving.edge.rest.keep_alive import KeepAlive
from tests.support.waiting import PATIENCE, eventually

SHORT = 0.01  # seconds, independent of the test's duration


@pytest.fixture
def keep():
    made = []

    def start(send_comment, interval=SHORT):
        made.append(KeepAlive(interval, send_comment))
        return made[-1]

    yield start
    for keepalive in made:
        keepalive.stop()


async def test_speaks_again_and_again_while_it_is_silent(keep):
    spoken = asyncio.Semaphore(0)

    async def send_comment():
        spoken.release()

    keep(send_comment)
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            await spoken.acquire()


class Timer:
    """A timer of ``ManualTimers``."""

    def __init__(self, timers, due, callback):
        self.timers, self.due, self.callback = timers, due, callback

    def cancel(self):
        self.timers.pending.remove(self)


class ManualTimers:
    """Time and timers of an event loop; a test advances the time."""

    def __init__(self):
        self.now, self.pending = 0.0, []

    def time(self):
        return self.now

    def call_later(self, delay, callback):
        self.pending.append(Timer(self, self.now + delay, callback))
        return self.pending[-1]

    def advance(self, seconds):
        self.now += seconds
        for timer in [each for each in self.pending if each.due <= self.now]:
            self.pending.remove(timer)
            timer.callback()


async def test_is_quiet_while_something_is_heard():
    spoken, timers = [], ManualTimers()

    async def send_comment():
        spoken.append(1)

    keepalive = KeepAlive(10.0, send_comment, timers)
    timers.advance(9.0)
    keepalive.data_sent()
    timers.advance(1.0)
    await asyncio.sleep(0)
    assert not spoken
    timers.advance(9.0)
    await asyncio.sleep(0)
    assert spoken == [1]


async def test_waits_for_a_client_who_does_not_read():
    begun, timers = [], ManualTimers()

    async def send_comment():
        begun.append(1)
        await asyncio.Event().wait()

    keepalive = KeepAlive(10.0, send_comment, timers)
    for _ in range(3):
        timers.advance(10.0)
        await asyncio.sleep(0)
    assert begun == [1]
    keepalive.stop()


async def test_stop_ends_timer_and_task():
    before, timers = asyncio.all_tasks(), ManualTimers()

    async def send_comment():
        await asyncio.Event().wait()

    keepalive = KeepAlive(10.0, send_comment, timers)
    timers.advance(10.0)
    assert asyncio.all_tasks() != before
    keepalive.stop()
    keepalive.stop()
    await eventually(lambda: asyncio.all_tasks() == before)
    assert not timers.pending
