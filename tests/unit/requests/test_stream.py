"""RequestStream: merging, the end of a request, and its restart on another rank."""

import asyncio

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.errors import EngineError, GroupLost
from serving.link.v1 import link_pb2
from serving.requests.output_buffer import OutputBuffer
from serving.requests.stream import RequestStream
from serving.requests.token_timings import TokenTimings
from tests.support.clock import ManualClock


def work(name):
    return link_pb2.Submit(request_id=name, prompt_token_ids=[1, 1, 1])


def stream(name):
    buffer = OutputBuffer(name, [1, 1, 1], SamplingParams(), RequestOutputKind.DELTA)
    timings = TokenTimings(ManualClock(100.0))
    return RequestStream(work(name), buffer, timings, expected_output=10)


def delta(name, *tokens, finished=False):
    choice = link_pb2.ChoiceDelta(token_ids=tokens)
    return link_pb2.Delta(request_id=name, choices=[choice], finished=finished)


async def test_stream_merges_what_its_caller_has_not_taken():
    each = stream("a")
    for token in range(5):
        each.receive(delta("a", token))
    output = await each.next()
    assert list(output.outputs[0].token_ids) == [0, 1, 2, 3, 4]
    waiter = asyncio.create_task(each.next())
    await asyncio.sleep(0)
    assert not waiter.done()
    each.receive(delta("a", 9, finished=True))
    assert (await waiter).finished


async def test_the_first_failure_counts_and_deltas_after_the_end_are_ignored():
    each = stream("a")
    each.receive(delta("a", 1, finished=True))
    each.fail(EngineError("late"))
    each.receive(delta("a", 2))
    output = await each.next()
    assert output.finished
    assert list(output.outputs[0].token_ids) == [1]


async def test_a_restarted_stream_continues_where_it_was():
    each = stream("a")
    each.receive(delta("a", 1, 2))
    each.fail(GroupLost("the group was lost"))
    assert (each.done, each.seen_tokens, each.outstanding_tokens) == (True, 2, 0)
    assert list((await each.next()).outputs[0].token_ids) == [1, 2]
    with pytest.raises(GroupLost):
        await each.next()
    each.restart(work("a~1"), expected_output=8)
    assert (each.done, each.seen_tokens, each.request_id) == (False, 0, "a~1")
    assert (each.outstanding_tokens, each.outstanding_output) == (3 + 8, 8)
    each.receive(delta("a~1", 3, finished=True))
    output = await each.next()
    assert (output.finished, list(output.outputs[0].token_ids)) == (True, [3])
