"""When a stream counts as silent, and gets a comment."""

import asyncio

import pytest

from serving.edge.rest.request_body import RequestBody
from serving.edge.rest.response_stream import KeepAlive, ResponseStream
from serving.h2grpc.budget import PendingBytes
from serving.h2grpc.turns import TaskTurns
from tests.support.clock import ManualClock
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


class Sent:
    """Records what is sent, and when the end is announced."""

    def __init__(self, *, path="/v1/chat/completions"):
        self.log = []
        clock = ManualClock()
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        body = RequestBody(
            scope,
            self._receive,
            clock,
            max_bytes=100,
            max_values=100,
            turns=TaskTurns(),
            pending=PendingBytes(100),
        )
        self.response = ResponseStream(scope, self._send, body, clock, 3600.0, end=self)

    async def _receive(self):
        raise AssertionError("the request's body is not read")

    async def _send(self, message):
        self.log.append(message.get("body", message.get("status")))

    def before_last_part(self, response):
        assert response is self.response
        self.log.append("end")

    async def app(self, *parts, status=200, media=b"application/json"):
        headers = [(b"content-type", media)]
        await self.response.send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        for part in parts[:-1]:
            await self.response.push(part)
        last = {"type": "http.response.body", "body": parts[-1], "more_body": False}
        await self.response.send(last)


@pytest.mark.parametrize(
    "last",
    [
        b"data: [DONE]\n\n",
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        b"event: response.completed\ndata: {}\n\n",
        b"event: response.incomplete\ndata: {}\n\n",
        b"event: response.failed\ndata: {}\n\n",
    ],
)
async def test_the_end_of_a_stream_is_announced_before_the_event_that_shows_it(last):
    """If the router is killed between the two, a client has not seen the end."""
    sent = Sent()
    tokens = [b"data: {}\n\n"] * 3
    await sent.app(*tokens, last, b"", media=b"text/event-stream")
    assert sent.log == [200, *tokens, "end", last, "end", b""]


async def test_the_end_of_a_whole_response_is_announced_before_its_body():
    sent = Sent()
    await sent.app(b'{"choices":[]}')
    assert sent.log == [200, "end", b'{"choices":[]}']


async def test_an_error_of_the_app_is_announced_too():
    sent = Sent()
    await sent.app(b'{"error":{}}', status=500)
    assert sent.log == [500, "end", b'{"error":{}}']
