"""Behaviour of CallRunner for every RPC."""

import asyncio
import json

import grpc
import pytest

from serving.clock import SystemClock
from serving.edge.gate import DrainGate
from serving.edge.grpc.call import CallRunner
from serving.edge.grpc.responses import complete_stream_response
from serving.edge.grpc.vllm_json import decode_text
from serving.request_context import request_context_var


class Context:
    """The part of gRPC's servicer context that a call needs."""

    def __init__(self, takes=True):
        self.takes = takes
        self.aborted = []
        self.written = []
        self.waited = []
        self.first = asyncio.Event()

    def invocation_metadata(self):
        return ()

    async def send_initial_metadata(self, metadata):
        pass

    def time_remaining(self):
        return 5.0

    def cancelled(self):
        return False

    def try_write(self, message):
        if self.takes:
            self.written.append(message.choices[0].text)
            self.first.set()
        return self.takes

    async def write(self, message):
        self.waited.append(message.choices[0].text)

    async def abort(self, *status):
        self.aborted.append(status)
        raise RuntimeError("aborted")


class Answer:
    """A stream of events that records how it ended."""

    def __init__(self, *events, then=None):
        self.events, self.then, self.closed, self.request_context = events, then, False, None

    async def begin(self, call):
        self.request_context = request_context_var.get()
        return self._stream()

    async def _stream(self):
        try:
            for event in self.events:
                yield event
            if self.then is not None:
                await self.then.wait()
        finally:
            self.closed = True


def token(text):
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': text}]})}\n\n"


def convert(data):
    return complete_stream_response(decode_text(data))


def stream(context, answer, gate=None):
    runner = CallRunner(gate or DrainGate(), "m", SystemClock())
    return runner.stream("CompleteStream", context, answer.begin, convert)


async def test_a_stream_is_passed_on_up_to_its_end():
    context = Context()
    answer = Answer(token("a"), ": waiting\n\n", token("b"), "data: [DONE]\n\n", token("c"))
    await stream(context, answer)
    assert (context.written, context.aborted) == (["a", "b"], [])
    assert (answer.closed, answer.request_context.tenant) == (True, "anonymous")


@pytest.mark.parametrize(
    ("last", "code"),
    [
        pytest.param((), grpc.StatusCode.INTERNAL, id="it just ends"),
        pytest.param(
            (
                'data: {"error": {"message": "no", "type": "x", "code": 400}}\n\n'.replace(
                    '": {', '":{'
                ),
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            id="an error event",
        ),
    ],
)
async def test_a_stream_that_goes_wrong_is_aborted(last, code):
    context = Context()
    with pytest.raises(RuntimeError, match="aborted"):
        await stream(context, Answer(token("a"), *last))
    assert context.written == ["a"]
    assert [status[0] for status in context.aborted] == [code]


async def test_a_stream_whose_client_left_is_closed():
    context, gate, more = Context(), DrainGate(), asyncio.Event()
    answer = Answer(token("a"), then=more)
    task = asyncio.create_task(stream(context, answer, gate))
    await context.first.wait()
    assert gate.inflight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (answer.closed, gate.inflight, context.aborted) == (True, 0, [])


async def test_what_cannot_go_out_at_once_is_waited_for():
    context = Context(takes=False)
    await stream(context, Answer(token("a"), token("b"), "data: [DONE]\n\n"))
    assert context.waited == ["a", "b"]
