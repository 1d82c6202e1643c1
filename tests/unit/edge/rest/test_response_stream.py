"""The end of a response is announced before a client can see it."""

import pytest

from serving.edge.rest.request_body import RequestBody
from serving.edge.rest.response_stream import ResponseStream
from serving.h2grpc.budget import PendingBytes
from serving.h2grpc.turns import TaskTurns
from tests.support.clock import ManualClock


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
