"""The contract of both quota stores: in memory, and in a real Redis."""

import asyncio
import time

import pytest

from serving.admission.quota_store import STORE_ERRORS, WINDOW, MemoryQuotas, RedisQuotas
from tests.support.waiting import PATIENCE


@pytest.fixture(params=["memory", "redis"])
async def store(request):
    if request.param == "memory":
        made = MemoryQuotas(time.monotonic)
    else:
        server = request.getfixturevalue("redis_server")
        made = RedisQuotas(server.url, timeout=PATIENCE)
    yield made
    await made.close()


async def test_requests_are_counted_up_to_the_limit(store):
    assert [await store.count_request("t", 3) for _ in range(5)] == [True] * 3 + [False] * 2
    assert await store.count_request("other", 3)
    window = await store.requests("t")
    assert (window.previous, window.current) == (0, 3)
    assert 0 < window.current_left <= WINDOW


async def test_tokens_are_charged_whatever_the_limit_and_given_back(store):
    assert (await store.tokens("t")).used == 0
    await store.charge_tokens("t", 70)
    await store.charge_tokens("t", 10**9)
    await store.charge_tokens("t", -30)
    window = await store.tokens("t")
    assert window.used == 10**9 + 40
    assert 0 < window.current_left <= WINDOW
    assert (await store.tokens("other")).used == 0


async def test_streams_are_leases(store):
    assert await store.open_stream("t", "1", 2, 60)
    assert await store.open_stream("t", "2", 2, 60)
    assert not await store.open_stream("t", "3", 2, 60)
    assert await store.open_stream("other", "1", 2, 60)
    await store.close_stream("t", "1")
    await store.close_stream("t", "1")
    await store.close_stream("t", "never opened")
    assert await store.open_stream("t", "3", 2, 60)
    assert not await store.open_stream("t", "4", 2, 60)


async def test_a_lease_ends_by_itself(store):
    assert await store.open_stream("t", "1", 1, 0.05)
    async with asyncio.timeout(PATIENCE):
        while not await store.open_stream("t", "2", 1, 60):  # noqa: ASYNC110  Redis has no event
            await asyncio.sleep(0.02)


async def test_many_at_once_do_not_pass_the_limit(store):
    counted = await asyncio.gather(*(store.count_request("t", 10) for _ in range(50)))
    assert sum(counted) == 10
    opened = await asyncio.gather(*(store.open_stream("t", str(n), 10, 60) for n in range(50)))
    assert sum(opened) == 10


async def test_keys_do_not_stay_for_ever(redis_server):
    store = RedisQuotas(redis_server.url, timeout=PATIENCE, prefix="p")
    await store.count_request("t", 5)
    await store.charge_tokens("t", 5)
    await store.open_stream("t", "1", 5, 7.5)
    keys = await store._client.keys("*")
    assert all(key.startswith(b"p:") for key in keys)
    times = [await store._client.pttl(key) for key in keys]
    assert len(times) == 3
    assert all(0 < left <= 2 * WINDOW * 1000 for left in times)
    await store.close()


async def test_a_server_that_is_gone_is_an_error_and_soon(redis_server):
    store = RedisQuotas(redis_server.url, timeout=PATIENCE)
    await store.charge_tokens("t", 5)
    redis_server.kill()
    for call in (
        store.charge_tokens("t", 5),
        store.tokens("t"),
        store.count_request("t", 5),
        store.open_stream("t", "1", 5, 60),
        store.close_stream("t", "1"),
    ):
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(STORE_ERRORS):
                await call
    redis_server.start()
    await store.charge_tokens("t", 7)
    assert (await store.tokens("t")).used == 7
    await store.close()
