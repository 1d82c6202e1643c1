"""Two controllers on one real Redis: one quota for both, also while Redis is unavailable."""

import asyncio
import os
import signal
import time
from contextlib import suppress

import pytest

from serving.admission.api import AdmissionRequest
from serving.admission.controller import AdmissionController
from serving.admission.quotas import REST_SECONDS, TenantLimits
from serving.errors import NotReady, Overloaded, SettingsError
from serving.request_context import RequestContext
from serving.settings import AdmissionSettings
from serving.telemetry.metrics import REGISTRY
from tests.support.clock import ManualClock
from tests.support.dispatching import ROUTING, SlotDispatcher, SlotStream
from tests.support.waiting import PATIENCE, in_time

LIMITS = {
    "streams": TenantLimits(concurrent_streams=3),
    "requests": TenantLimits(requests_per_minute=3),
    "many": TenantLimits(requests_per_minute=1000),
    "tokens": TenantLimits(tokens_per_minute=100),
}


def limits_of(tenant):
    return LIMITS.get(tenant, TenantLimits())


async def enter(router, tenant, prompt_tokens=10):
    """Return the request once it is placed."""
    request = AdmissionRequest(
        context=RequestContext(tenant),
        stream=SlotStream(),
        routing=ROUTING,
        prompt_tokens=prompt_tokens,
        output_tokens=10,
        deadline=time.monotonic() + 60,
    )
    await router.enter(request)
    return request


def controller(settings, limits_of=None, clock=None):
    dispatcher = SlotDispatcher(capacity=1000)
    return AdmissionController(settings, dispatcher, limits_of=limits_of, clock=clock)


async def eventually(action):
    """Repeat ``action`` until it succeeds: releases are written to Redis in the background."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(Overloaded):
                return await action()
            await asyncio.sleep(0.01)


def failures():
    return REGISTRY.get_sample_value("moe_quota_store_failures_total")


@pytest.fixture
async def routers(redis_server):
    made = []

    def make(down="open", timeout=PATIENCE, clock=None):
        """Start two; with a short ``timeout``, a busy Redis counts as one that is gone."""
        settings = AdmissionSettings(
            redis_url=redis_server.url, redis_down=down, redis_timeout=timeout
        )
        pair = [controller(settings, limits_of, clock) for _ in range(2)]
        made.extend(pair)
        return pair

    yield make
    for router in made:
        await router.stop()


async def test_streams_are_counted_over_both(routers):
    one, two = routers()
    requests = [
        await enter(one, "streams"),
        await enter(two, "streams"),
        await enter(one, "streams"),
    ]
    for router in (one, two):
        with pytest.raises(Overloaded, match="concurrent requests"):
            await enter(router, "streams")
    one.release(requests[0], generated_tokens=5)
    await eventually(lambda: enter(two, "streams"))
    with pytest.raises(Overloaded):
        await enter(one, "streams")


async def test_requests_are_counted_over_both(routers):
    one, two = routers()
    for router in (one, two, one):
        router.release(await enter(router, "requests"), generated_tokens=0)
    for router in (two, one):
        with pytest.raises(Overloaded, match="request quota for this minute") as caught:
            await enter(router, "requests")
        assert 0 < caught.value.retry_after <= 120
    with pytest.raises(Overloaded):
        one.check(RequestContext("requests"))  # remembered: rejected before any work from now on
    await enter(one, "somebody else")


async def test_tokens_are_counted_over_both_generated_ones_at_the_end(routers):
    one, two = routers()
    request = await enter(one, "tokens", prompt_tokens=60)
    other = await enter(two, "tokens", prompt_tokens=30)
    two.release(other, generated_tokens=500)
    async with asyncio.timeout(PATIENCE):
        shared = one._quotas._shared
        while (await shared.tokens("tokens")).used < 590:  # noqa: ASYNC110  Redis has no event
            await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match="token quota for this minute"):
        await enter(one, "tokens")
    one.release(request, generated_tokens=1)


async def test_redis_gone_open_each_router_counts_for_itself(routers, redis_server):
    one, two = routers("open")
    held = [await enter(one, "streams") for _ in range(3)]
    redis_server.kill()
    before = failures()
    for router in (one, two):
        for _ in range(3):
            await enter(router, "streams")
        with pytest.raises(Overloaded, match="concurrent requests"):
            await enter(router, "streams")
    assert failures() >= before + 2
    # Once Redis is back, the shared count applies again; releases in between are sent then.
    for request in held:
        one.release(request, generated_tokens=0)
    redis_server.start()
    async with asyncio.timeout(PATIENCE):
        while True:
            pair = [r._quotas for r in (one, two)]
            if all(q._clock.monotonic() >= q._down_until and not q._ended for q in pair):
                break
            await asyncio.sleep(0.02)
    for router in (two, one, two):
        await enter(router, "streams")
    with pytest.raises(Overloaded):
        await enter(one, "streams")


async def test_redis_gone_closed_limited_tenants_are_refused(routers, redis_server):
    clock = ManualClock(time.monotonic())
    one, _ = routers("closed", clock=clock)
    await enter(one, "streams")
    redis_server.kill()
    before = failures()
    for _ in range(20):
        with pytest.raises(NotReady, match="quotas cannot be checked"):
            await enter(one, "streams")
    assert failures() == before + 1  # it is not called for a while
    await enter(one, "unlimited")
    redis_server.start()

    async def again():
        clock.now += REST_SECONDS
        with suppress(NotReady):
            return await enter(one, "streams")
        raise Overloaded

    await eventually(again)


async def test_a_redis_that_hangs_delays_one_request_and_blocks_nobody(routers, redis_server):
    async def hang(seconds):
        one, _ = routers("open", timeout=seconds)
        await enter(one, "many")
        os.kill(redis_server.process.pid, signal.SIGSTOP)
        try:
            delayed, beats = asyncio.create_task(enter(one, "many")), 0
            async with asyncio.timeout(PATIENCE):
                while not delayed.done():
                    await asyncio.sleep(0.005)
                    beats += 1
            await delayed
            assert beats >= 10  # the event loop kept running while waiting for Redis
            for _ in range(2):
                await enter(one, "many")
        finally:
            os.kill(redis_server.process.pid, signal.SIGCONT)

    await in_time(hang)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"redis_password_file": "/no/such/file"}, "/no/such/file", id="no file"),
        pytest.param({"redis_url": "redis://127.0.0.1:none/0"}, "redis_url", id="no port"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_at_start(settings, named):
    settings = {"redis_url": "redis://127.0.0.1:1/0", **settings}
    with pytest.raises(SettingsError, match=named):
        controller(AdmissionSettings(**settings))


async def test_a_password_comes_from_a_file(redis_server, tmp_path):
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(redis_server.url)
    await client.config_set("requirepass", "open sesame")
    await client.aclose()
    file = tmp_path / "password"
    file.write_text("open sesame\n")
    for password_file, used in ((None, False), (str(file), True)):
        settings = AdmissionSettings(
            redis_url=redis_server.url, redis_down="closed", redis_password_file=password_file
        )
        router = controller(settings, limits_of)
        try:
            await enter(router, "streams")
            assert used
        except NotReady:
            assert not used
        await router.stop()
