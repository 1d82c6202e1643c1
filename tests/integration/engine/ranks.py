"""Real vLLM ranks on loopback without Ray, for the tests in this folder."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from unittest import mock

import msgspec
import psutil
from vllm.v1.metrics.loggers import PrometheusStatLogger

from serving.engine.vllm_engine import VllmEngine
from serving.link.v1 import link_pb2
from tests.support.engines import generate, share_fork_server
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE

DEADLINE = 300  # seconds; reached only on failure
_LOGGING = threading.Lock()


def _alone(start=PrometheusStatLogger.__init__):
    """Serialize the engines' replacement of each other's metrics in the registry.

    Each rank normally has a separate process; here, their threads would interfere.
    """

    def begin(*arguments, **options):
        with _LOGGING:
            start(*arguments, **options)

    return mock.patch.object(PrometheusStatLogger, "__init__", begin)


@contextlib.asynccontextmanager
async def running(settings):
    """Start every rank of one group in this process; stop them, and check that nothing is left."""
    share_fork_server()
    before = set(psutil.Process().children(recursive=True))
    port = held_port()
    ranks = [
        VllmEngine(settings, rank, "127.0.0.1", port)
        for rank in range(settings.group.data_parallel)
    ]
    try:
        with _alone():
            await asyncio.gather(*(rank.start() for rank in ranks))
        yield ranks
    finally:
        await asyncio.gather(*(rank.shutdown() for rank in ranks))
    left = set(psutil.Process().children(recursive=True)) - before
    # Killed processes take a while to disappear on a busy machine.
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)
    assert not alive


def submit(request_id, prompt, **params):
    params = {"temperature": 0.0, "ignore_eos": True} | params
    return link_pb2.Submit(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=msgspec.msgpack.encode(params),
    )


@dataclass
class Scored:
    """A prompt, its greedy answer, and the log-probability of every token except the first."""

    prompt: list[int]
    answer: list[int]
    prompt_logprobs: list[float]
    answer_logprobs: list[float]
    speculation: link_pb2.SpeculationCounts


async def score(engine, name, prompt, length):
    """Request ``length`` greedy tokens from ``engine`` and all log-probabilities."""
    scored = Scored(list(prompt), [], [], [], link_pb2.SpeculationCounts())
    work = submit(name, prompt, max_tokens=length, logprobs=0, prompt_logprobs=0)
    async with asyncio.timeout(DEADLINE):
        async for delta in generate(engine, work):
            assert not delta.HasField("error"), delta.error.message
            scored.prompt_logprobs += [p.logprobs[0] for p in delta.prompt_logprobs[1:]]
            for choice in delta.choices:
                scored.answer += choice.token_ids
                scored.answer_logprobs += [p.logprobs[0] for p in choice.logprobs]
                scored.speculation.MergeFrom(choice.speculation)
    assert len(scored.answer) == len(scored.answer_logprobs) == length
    assert len(scored.prompt_logprobs) == len(prompt) - 1
    return scored


async def first_tokens(engine, name, prompt, length, **params):
    """Return the first ``length`` greedy tokens."""
    found = []
    async with asyncio.timeout(DEADLINE):
        async for delta in generate(engine, submit(name, prompt, max_tokens=length, **params)):
            assert not delta.HasField("error"), delta.error.message
            for choice in delta.choices:
                found += choice.token_ids
    return found
