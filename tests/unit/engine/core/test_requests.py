"""CoreRequests: the data that the engine core receives, and how requests end.

tests/unit/requests/test_output_buffer.py compares outputs with vLLM's own.
"""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError

from serving.engine.core.requests import CoreRequests
from serving.link.v1 import link_pb2
from tests.support.waiting import eventually

CODES = link_pb2.RequestError


class Core:
    """A core client that records what is sent to it, with outputs provided by the test."""

    traces = False
    dead = False

    def __init__(self, **limits):
        limits = {"max_num_queued_reqs": None, "max_num_queued_tokens": None} | limits
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(**limits))
        self.input_processor = self
        self.sent = []
        self.broken = set()
        self.steps = asyncio.Queue()

    def process_inputs(self, request_id, prompt, params, **fields):
        ids = prompt["prompt_token_ids"]
        if 999 in ids:
            raise ValueError("out of vocabulary")
        return EngineCoreRequest(
            request_id, ids, None, params, None, 0.0, None, None, None, priority=fields["priority"]
        )

    async def add(self, request):
        if set(request.prompt_token_ids) & self.broken:
            raise TypeError("cannot be encoded")
        if self.dead:
            raise EngineDeadError
        self.sent.append(request.request_id)

    async def abort(self, request_ids):
        self.sent.append(set(request_ids))

    async def outputs(self):
        step = await self.steps.get()
        if isinstance(step, Exception):
            raise step
        return step


class Statistics:
    """Records the ends of requests."""

    def __init__(self):
        self.ended = []

    def begin(self):
        return None

    def count(self, step, one, output, at):
        one.prefilling = False

    def finished(self, one, reason, output):
        self.ended.append((one.request.external_req_id, reason))

    def end(self, outputs):
        pass


class Stand:
    def __init__(self, **limits):
        self.core = Core(**limits)
        self.statistics = Statistics()
        self.requests = CoreRequests(self.core, self.statistics)
        self.deltas = []

    def submit(self, name="a", prompt=(1, 2), **params):
        work = link_pb2.Submit(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=msgspec.msgpack.encode(SamplingParams(**params)),
        )
        return self.requests.submit(work, self.deltas.append)

    def step(self, **outputs):
        """One step. Keywords: token ids or a finish reason, by the number of the request."""
        self.core.steps.put_nowait(
            EngineCoreOutputs(
                outputs=[
                    EngineCoreOutput(name, [], finish_reason=what)
                    if isinstance(what, FinishReason)
                    else EngineCoreOutput(name, what)
                    for name, what in outputs.items()
                ]
            )
        )

    async def sent(self, *expected):
        await eventually(lambda: self.core.sent == list(expected))


@pytest.fixture
async def stand():
    stand = Stand()
    stand.requests.start()
    yield stand
    await stand.requests.stop()


async def test_an_abort_follows_its_request_and_ends_it_silently(stand):
    first, second = stand.submit("a"), stand.submit("b")
    await stand.sent("a-1", "b-2")
    first.cancel()
    first.cancel()
    third = stand.submit("c")
    third.cancel()
    await stand.sent("a-1", "b-2", {"a-1", "c-3"})
    stand.step(**{"a-1": [5], "b-2": [6]})
    await eventually(lambda: stand.deltas)
    assert [list(each.choices[0].token_ids) for each in stand.deltas] == [[6]]
    assert stand.requests.unfinished == 1
    assert second.complete(0)
    assert stand.statistics.ended == [("b", FinishReason.STOP)]
    assert stand.requests.unfinished == 0


async def test_the_choices_of_a_request_end_one_by_one(stand):
    request = stand.submit("a", n=3, temperature=1.0)
    await stand.sent("0_a-1", "1_a-1", "2_a-1")
    assert not request.complete(1)
    stand.step(**{"0_a-1": [5], "1_a-1": [6], "2_a-1": FinishReason.LENGTH})
    stand.step(**{"0_a-1": FinishReason.LENGTH})
    await eventually(lambda: len(stand.deltas) == 3)
    found = [(each.choices[0].index, each.prompt_tokens, each.finished) for each in stand.deltas]
    assert found == [(0, 2, False), (2, 0, False), (0, 0, True)]
    assert request.complete(0)


async def test_an_invalid_request_fails_alone(stand):
    stand.core.broken = {7}
    stand.submit("bad", prompt=(1, 999))
    stand.submit("odd", prompt=(1, 7))
    stand.submit("good")
    await stand.sent("good-2", {"odd-1"})
    assert [(each.request_id, each.error.code) for each in stand.deltas] == [
        ("bad", CODES.INVALID_REQUEST),
        ("odd", CODES.INVALID_REQUEST),
    ]
    assert stand.requests.unfinished == 1
    assert not stand.requests.failed


@pytest.mark.parametrize("where", ["outputs", "inputs"])
async def test_a_dead_engine_ends_all_requests_once(stand, where):
    running = stand.submit("a", n=2, temperature=1.0)
    await stand.sent("0_a-1", "1_a-1")
    if where == "outputs":
        stand.core.steps.put_nowait(EngineDeadError())
    else:
        stand.core.dead = True
        stand.requests._choices["x"] = next(iter(running.choices.values()))
        stand.requests._inputs.append(
            EngineCoreRequest("x", [1], None, None, None, 0.0, None, None, None)
        )
        stand.requests._wake.set()
    await eventually(lambda: stand.requests.failed and stand.deltas)
    assert [(each.finished, each.error.code) for each in stand.deltas] == [
        (True, CODES.ENGINE_FAILED)
    ]
    running.cancel()
    stand.submit("late")
    assert stand.deltas[-1].error.message == "the engine is not running"


async def test_a_grammar_without_a_next_token_ends_the_request_not_the_engine(stand):
    grammar = StructuredOutputsParams(regex="a")
    stand.submit("a", n=2, temperature=1.0, structured_outputs=grammar)
    await stand.sent("0_a-1", "1_a-1")
    stand.step(**{"1_a-1": FinishReason.ERROR, "0_a-1": [5]})
    await stand.sent("0_a-1", "1_a-1", {"0_a-1"})
    (delta,) = stand.deltas
    assert (delta.finished, delta.error.code) == (True, CODES.INVALID_REQUEST)
    assert "grammar" in delta.error.message
    assert stand.requests.unfinished == 0


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        pytest.param({"max_num_queued_reqs": 2}, "max_num_queued_reqs", id="requests"),
        pytest.param({"max_num_queued_tokens": 4}, "max_num_queued_tokens is 4", id="tokens"),
    ],
)
async def test_vllms_limits_of_its_queue_are_kept(limits, words):
    stand = Stand(**limits)
    for name in "abc":
        stand.submit(name)
    (refused,) = stand.deltas
    assert (refused.request_id, refused.error.code) == ("c", CODES.OVERLOADED)
    assert words in refused.error.message
