"""Metrics over real links: resumptions with their outcome, tokens of tenants."""

import asyncio
import contextlib

from serving.errors import DeadlineExceeded
from serving.request_context import RequestContext, use_request_context
from serving.telemetry.metrics import REGISTRY
from tests.support.waiting import eventually, in_time


@contextlib.contextmanager
def asking(tenant, seconds=None):
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    context = RequestContext(tenant, deadline=deadline)
    with use_request_context(context):
        yield context.record


def count(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def resumed(outcome):
    return count("moe_resumes_total", way="continue", outcome=outcome)


async def begin(fleet, tenant, **deadline):
    """Start a request that stops after its first token, and return it with its rank's server."""
    router = await fleet.router()
    (rank,) = await fleet.group(router, 1)
    rank.engine.pause = 1
    with asking(tenant, **deadline) as record:
        stream = router.generate(max_tokens=4)
    await anext(stream)
    return router, rank, stream, record


async def test_a_resumption_is_counted_with_its_outcome_and_the_tokens_once(fleet):
    router, rank, stream, record = await begin(fleet, "metrics-a")
    before = resumed("OK"), resumed("LOST")
    other = await fleet.rank(router, group="g1")
    other.engine.pause = 2
    await rank.stop()
    await anext(stream)
    assert resumed("OK") == before[0] + 1, "a new token came"
    other.engine.go.set()
    async for _ in stream:
        pass
    assert (resumed("OK"), resumed("LOST")) == (before[0] + 1, before[1])
    tokens = [count("moe_tenant_tokens_total", tenant="metrics-a", kind=kind)
              for kind in ("prompt", "cached", "generated")]  # fmt: skip
    assert tokens == [3, 2, 4]
    assert record.cached_tokens == 2
    assert record.first_token_at is not None


async def test_one_that_finds_no_group_is_counted_under_its_error(fleet):
    before = resumed("DEADLINE_EXCEEDED")

    async def lose(seconds):
        _, rank, stream, record = await begin(fleet, "metrics-b", seconds=seconds)
        waiting = asyncio.ensure_future(anext(stream))
        await rank.stop()
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), DeadlineExceeded)
        assert record.resumes == 1  # the rank was lost before the deadline

    await in_time(lose, (DeadlineExceeded, AssertionError))
    assert resumed("DEADLINE_EXCEEDED") == before + 1


async def test_one_that_is_given_up_is_counted_as_cancelled(fleet):
    _, rank, stream, record = await begin(fleet, "metrics-c")
    before = resumed("CANCELLED")
    waiting = asyncio.ensure_future(anext(stream))
    await rank.stop()
    await eventually(lambda: record.resumes == 1, "the resumption")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert resumed("CANCELLED") == before + 1
