"""Quotas of tenants: rejections, their retry time, and a failing shared store."""

import asyncio
from contextlib import suppress

import pytest
from redis.exceptions import RedisError

from serving.admission.quota_store import MemoryQuotas
from serving.admission.quotas import REST_SECONDS, Quotas, TenantLimits
from serving.errors import NotReady, Overloaded
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, eventually


class Shared(MemoryQuotas):
    """A shared store that can fail or hang."""

    def __init__(self, clock):
        super().__init__(clock.monotonic)
        self.calls = 0
        self.error = None
        self.hangs = False

    async def _trouble(self):
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def open_stream(self, *arguments):
        await self._trouble()
        return await super().open_stream(*arguments)

    async def close_stream(self, *arguments):
        await self._trouble()
        await super().close_stream(*arguments)

    async def charge_tokens(self, *arguments):
        await self._trouble()
        await super().charge_tokens(*arguments)

    async def count_request(self, *arguments):
        await self._trouble()
        return await super().count_request(*arguments)

    async def tokens(self, *arguments):
        await self._trouble()
        return await super().tokens(*arguments)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def wall(monkeypatch):
    """The clock of the windows in ``limits``, set far from the edge of a window."""

    class Wall:
        now = 60_000_030.0

        def time(self):
            return self.now

    wall = Wall()
    monkeypatch.setattr("limits.aio.storage.memory.time", wall)
    return wall


@pytest.fixture
async def make(clock):
    made = []

    def make(limits, *, shared=None, **options):
        table = limits if isinstance(limits, dict) else {"t": limits}
        options = {"own": MemoryQuotas(clock.monotonic), **options}
        quotas = Quotas(lambda tenant: table.get(tenant, TenantLimits()), clock, shared, **options)
        made.append(quotas)
        return quotas

    yield make
    for quotas in made:
        await quotas.close()


async def settled(quotas):
    """Wait until everything is written to the stores."""
    await eventually(lambda: not quotas.pending)
    await asyncio.sleep(0)


async def take(quotas, tenant="t", tokens=10, seconds=60.0):
    return await quotas.take(tenant, tokens, seconds)


async def test_requests_of_a_minute(make, wall):
    quotas = make(TenantLimits(requests_per_minute=2))
    for _ in range(2):
        await take(quotas)
    with pytest.raises(Overloaded, match="request quota for this minute") as caught:
        await take(quotas)
    # 30 s until the window ends; then it fades until less than one request counts.
    assert caught.value.retry_after == pytest.approx(30.0)
    wall.now += 31 + 30
    await take(quotas)


async def test_tokens_are_charged_at_both_ends_and_debts_block(make, wall):
    quotas = make(TenantLimits(tokens_per_minute=100))
    lease = await take(quotas, tokens=99)
    await take(quotas, tokens=50)  # one was left: it may exceed the limit
    lease.end(51)
    lease.end(51)
    await settled(quotas)
    with pytest.raises(Overloaded, match="token quota for this minute") as caught:
        await take(quotas, tokens=1)
    # 200 used: 30 s until the window is over, 30 s until half of it has faded.
    assert caught.value.retry_after == pytest.approx(60.0)


async def test_streams(make):
    quotas = make(TenantLimits(concurrent_streams=2))
    first, _ = await take(quotas), await take(quotas)
    with pytest.raises(Overloaded, match="concurrent requests"):
        await take(quotas)
    first.end(5)
    await settled(quotas)
    await take(quotas)


async def test_what_is_refused_holds_no_stream(make, wall, clock):
    store = MemoryQuotas(clock.monotonic)
    quotas = make(TenantLimits(concurrent_streams=5, requests_per_minute=1), own=store)
    await take(quotas)
    for _ in range(10):
        with pytest.raises(Overloaded, match="request quota for this minute"):
            await take(quotas)
        await settled(quotas)
    assert store.open_streams("t") == 1


async def test_given_back(make, clock):
    store = MemoryQuotas(clock.monotonic)
    quotas = make(TenantLimits(concurrent_streams=1, tokens_per_minute=100), own=store)
    lease = await take(quotas, tokens=30)
    lease.give_back()
    lease.give_back()
    await settled(quotas)
    assert (await store.tokens("t")).used == 0
    await take(quotas)


async def test_tenants_do_not_share(make, wall):
    limits = TenantLimits(requests_per_minute=1)
    quotas = make({"a": limits, "b": limits})
    await take(quotas, "a")
    await take(quotas, "b")
    with pytest.raises(Overloaded):
        await take(quotas, "a")


async def test_check_remembers_a_refusal_until_it_is_over(make, clock, wall):
    quotas = make(TenantLimits(requests_per_minute=1))
    quotas.check("t")
    await take(quotas)
    quotas.check("t")  # no tenant was rejected yet
    with pytest.raises(Overloaded) as first:
        await take(quotas)
    clock.now += 10
    with pytest.raises(Overloaded) as again:
        quotas.check("t")
    assert again.value.retry_after == pytest.approx(first.value.retry_after - 10)
    clock.now += first.value.retry_after
    quotas.check("t")


async def test_check_forgets_a_refusal_when_the_limits_change(make, wall):
    table = {"t": TenantLimits(requests_per_minute=1)}
    quotas = make(table)
    await take(quotas)
    with pytest.raises(Overloaded):
        await take(quotas)
    table["t"] = TenantLimits(requests_per_minute=100)
    quotas.check("t")
    await take(quotas)


# -- a shared store that fails ------------------------------------------------------------

TROUBLE = [RedisError("x"), ConnectionRefusedError("x"), TimeoutError("x")]


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
async def test_open_counts_here_meanwhile(make, clock, error):
    shared = Shared(clock)
    quotas = make(TenantLimits(concurrent_streams=1), shared=shared, down="open")
    shared.error = error
    await take(quotas)
    with pytest.raises(Overloaded):
        await take(quotas)
    assert shared.calls == 1  # then it is not called
    shared.error = None
    clock.now += REST_SECONDS
    await take(quotas)
    assert shared.calls == 2


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
async def test_closed_refuses_meanwhile(make, clock, error):
    shared = Shared(clock)
    quotas = make(TenantLimits(concurrent_streams=1), shared=shared, down="closed")
    shared.error = error
    for _ in range(3):
        with pytest.raises(NotReady):
            await take(quotas)
    assert shared.calls == 1
    shared.error = None
    clock.now += REST_SECONDS
    await take(quotas)


async def test_a_store_that_hangs_is_given_up(make, clock):
    shared = Shared(clock)
    quotas = make(TenantLimits(concurrent_streams=1), shared=shared, timeout=0.02)
    shared.hangs = True
    async with asyncio.timeout(PATIENCE):
        await take(quotas)
    shared.hangs = False


async def test_an_error_of_ours_is_not_taken_for_trouble(make, clock):
    shared = Shared(clock)
    shared.error = RuntimeError("a bug")
    quotas = make(TenantLimits(concurrent_streams=1), shared=shared)
    with pytest.raises(RuntimeError):
        await take(quotas)
    shared.error = None


async def test_a_write_that_failed_is_repeated_later(make, clock):
    shared = Shared(clock)
    limits = TenantLimits(concurrent_streams=1, tokens_per_minute=1000)
    quotas = make(limits, shared=shared)
    lease = await take(quotas, tokens=10)
    shared.error = RedisError("gone")
    lease.end(90)
    for _ in range(5):
        await asyncio.sleep(0)
    assert quotas.pending
    shared.error = None
    clock.now += REST_SECONDS
    quotas._settler.cancel()  # it sleeps by the real clock; the next one writes the rest
    with suppress(asyncio.CancelledError):
        await quotas._settler
    quotas.settle(lease, 0)
    await settled(quotas)
    assert (await shared.tokens("t")).used == 100
    assert shared.open_streams("t") == 0


async def test_an_expired_lease_is_not_closed_in_the_store(make, clock):
    shared = Shared(clock)
    quotas = make(TenantLimits(concurrent_streams=1), shared=shared)
    lease = await take(quotas, seconds=5)
    shared.error = RedisError("gone")
    clock.now += 6
    lease.end(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not quotas.pending


async def test_cancelled_while_the_store_is_called(make, clock):
    shared = Shared(clock)
    quotas = make(TenantLimits(concurrent_streams=1, tokens_per_minute=10), shared=shared)
    shared.hangs = True
    task = asyncio.create_task(take(quotas))
    await asyncio.sleep(0)
    shared.hangs = False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(quotas)
    await take(quotas)  # it has no stream
