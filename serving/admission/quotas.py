"""Holds every tenant to its limits, also when the shared store does not answer.

A limited request costs a few calls to the store; one of an unlimited tenant costs nothing. A
store that does not answer is left alone for a second, so that it delays one request in many.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Literal, TypeVar
from uuid import uuid4

import structlog

from serving.admission.limits import LimitsOf, TenantLimits
from serving.admission.quota_store import STORE_ERRORS, MemoryQuotas, QuotaStore
from serving.clock import Clock
from serving.errors import NotReady, Overloaded
from serving.telemetry import metrics

REST_SECONDS = 1.0
"""How long a shared store that failed is not asked again."""
STREAM_RETRY_SECONDS = 1.0
"""What a tenant with too many streams is advised: nobody knows when one of them ends."""

R = TypeVar("R")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Quotas:
    """Counts what tenants use and refuses what is over their limits."""

    def __init__(
        self,
        limits_of: LimitsOf,
        clock: Clock,
        shared: QuotaStore | None = None,
        *,
        timeout: float = 1.0,
        down: Literal["open", "closed"] = "open",
    ) -> None:
        """Count nothing yet.

        Args:
            limits_of: the limits of a tenant by name.
            clock: for waits and leases.
            shared: the store that several routers share; none: this process counts alone.
            timeout: seconds for one question to it.
            down: what holds while it does not answer.
        """
        self._limits_of = limits_of
        self._clock = clock
        self._shared = shared
        self._timeout = timeout
        self._down = down
        self._down_until = float("-inf")
        self._own: MemoryQuotas | None = None
        self._refused: dict[str, _Refused] = {}
        self._streams = count()
        self._name = uuid4().hex[:12]
        # What is still to be told to a store, with no request waiting for it.
        self._debts: dict[tuple[QuotaStore, str], int] = {}
        self._ended: list[Lease] = []
        self._settler: asyncio.Task[None] | None = None

    def limits(self, tenant: str) -> TenantLimits:
        """Return the limits of a tenant."""
        return self._limits_of(tenant)

    def check(self, tenant: str) -> None:
        """Refuse a tenant that was refused just now and cannot have got room since.

        Raises:
            Overloaded: its quota is used up.
        """
        refused = self._refused.get(tenant)
        if refused is None:
            return
        left = refused.until - self._clock.monotonic()
        if left <= 0 or refused.limits != self._limits_of(tenant):
            del self._refused[tenant]
            return
        raise _refusal(refused.reason, left)

    async def take(self, tenant: str, tokens: int, seconds: float) -> "Lease":
        """Count a request in, with its prompt.

        Args:
            tenant: who asks.
            tokens: of the prompt.
            seconds: for how long it may run at most.

        Raises:
            Overloaded: a quota is used up.
            NotReady: the store does not answer, and requests are refused for that.
        """
        limits = self._limits_of(tenant)
        return await self._ask(lambda store: self._take(store, tenant, limits, tokens, seconds))

    async def close(self) -> None:
        """Tell the stores what is left to tell, and let go of them."""
        settler, self._settler = self._settler, None
        if settler is not None:
            await asyncio.wait({settler}, timeout=REST_SECONDS)
            settler.cancel()
            await asyncio.wait({settler})
        for store in (self._shared, self._own):
            if store is not None:
                await store.close()

    async def _take(
        self, store: QuotaStore, tenant: str, limits: TenantLimits, tokens: int, seconds: float
    ) -> "Lease":
        name = f"{self._name}-{next(self._streams)}"
        until = self._clock.monotonic() + seconds
        lease = Lease(self, store, tenant, name, until, limits, tokens)
        try:
            await self._count(lease)
        except BaseException:
            lease.give_back(tokens=0)
            raise
        return lease

    async def _count(self, lease: "Lease") -> None:
        """Count a request in the store.

        Raises:
            Overloaded: a quota is used up.
        """
        limits, store, tenant = lease.limits, lease.store, lease.tenant
        seconds = lease.until - self._clock.monotonic()
        most = limits.concurrent_streams
        if most is not None and not await store.open_stream(tenant, lease.stream, most, seconds):
            raise _refusal("concurrent_streams", STREAM_RETRY_SECONDS)
        most = limits.tokens_per_minute
        if most is not None and (left := (await store.tokens(tenant)).seconds_until(most)) > 0:
            raise self._remembered(lease, "tokens_per_minute", left)
        most = limits.requests_per_minute
        if most is not None and not await store.count_request(tenant, most):
            left = (await store.requests(tenant)).seconds_until(most)
            raise self._remembered(lease, "requests_per_minute", left)
        if limits.tokens_per_minute is not None:
            await store.charge_tokens(tenant, lease.prompt_tokens)

    def _remembered(self, lease: "Lease", reason: str, seconds: float) -> Overloaded:
        until = self._clock.monotonic() + seconds
        self._refused[lease.tenant] = _Refused(until, reason, lease.limits)
        return _refusal(reason, seconds)

    async def _ask(self, question: Callable[[QuotaStore], Awaitable[R]]) -> R:
        """Ask the shared store, or this process's own.

        Raises:
            NotReady: the shared one does not answer, and requests are refused for that.
        """
        if self._shared is not None:
            if self._clock.monotonic() >= self._down_until:
                try:
                    async with asyncio.timeout(self._timeout):
                        return await question(self._shared)
                except STORE_ERRORS as error:
                    self._failed(error)
            if self._down == "closed":
                metrics.ADMISSION_REFUSALS.labels("quotas_unavailable").inc()
                raise NotReady("quotas cannot be checked at the moment; try again")
        if self._own is None:
            self._own = MemoryQuotas(self._clock.monotonic)
        return await question(self._own)

    def _failed(self, error: Exception) -> None:
        self._down_until = self._clock.monotonic() + REST_SECONDS
        metrics.QUOTA_STORE_FAILURES.inc()
        log.warning("Redis does not answer", down=self._down, reason=repr(error))

    # -- what no request waits for ------------------------------------------------------

    def settle(self, lease: "Lease", tokens: int) -> None:
        """Charge ``tokens`` (negative: give back) and end the lease's stream, soon."""
        if tokens and lease.limits.tokens_per_minute is not None:
            key = (lease.store, lease.tenant)
            self._debts[key] = self._debts.get(key, 0) + tokens
        if lease.limits.concurrent_streams is not None:
            self._ended.append(lease)
        if (self._debts or self._ended) and (self._settler is None or self._settler.done()):
            self._settler = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        """Tell the stores; what the shared one does not take now it is told later."""
        while self._debts or self._ended:
            await self._settle_once()
            if self._debts or self._ended:
                await asyncio.sleep(max(self._down_until - self._clock.monotonic(), 0.0))

    async def _settle_once(self) -> None:
        debts, self._debts = self._debts, {}
        ended, self._ended = self._ended, []
        for lease in ended:
            done = await self._tell(lease.store, partial(_close_stream, lease))
            if not done and lease.until > self._clock.monotonic():
                self._ended.append(lease)
        for (store, tenant), tokens in debts.items():
            if not await self._tell(store, partial(_charge, tenant, tokens)):
                key = (store, tenant)
                self._debts[key] = self._debts.get(key, 0) + tokens

    async def _tell(
        self, store: QuotaStore, message: Callable[[QuotaStore], Awaitable[None]]
    ) -> bool:
        if store is self._shared and self._clock.monotonic() < self._down_until:
            return False
        try:
            async with asyncio.timeout(self._timeout):
                await message(store)
        except STORE_ERRORS as error:
            self._failed(error)
            return False
        return True


async def _close_stream(lease: "Lease", store: QuotaStore) -> None:
    await store.close_stream(lease.tenant, lease.stream)


async def _charge(tenant: str, tokens: int, store: QuotaStore) -> None:
    await store.charge_tokens(tenant, tokens)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A tenant that was refused, and until when it would be refused again."""

    until: float
    reason: str
    limits: TenantLimits
    """Those that were used up; with others it may be let in."""


@dataclass(slots=True, eq=False)
class Lease:
    """What one request holds of its tenant's quotas."""

    quotas: Quotas
    store: QuotaStore
    tenant: str
    stream: str
    until: float
    """When its stream ends by itself."""
    limits: TenantLimits
    prompt_tokens: int
    _over: bool = field(default=False, init=False)

    def end(self, generated_tokens: int) -> None:
        """Charge what was generated. Safe to call twice."""
        self._settle(generated_tokens)

    def give_back(self, tokens: int | None = None) -> None:
        """Undo: the request was refused after all, and gets its prompt (or ``tokens``) back."""
        self._settle(-self.prompt_tokens if tokens is None else -tokens)

    def _settle(self, tokens: int) -> None:
        if not self._over:
            self._over = True
            self.quotas.settle(self, tokens)


_WHAT = {
    "requests_per_minute": "your requests of this minute are used up",
    "tokens_per_minute": "your tokens of this minute are used up",
    "concurrent_streams": "you have as many requests in flight as you may",
}
for _reason in (*_WHAT, "quotas_unavailable"):
    metrics.ADMISSION_REFUSALS.labels(_reason)  # there from the start, at 0


def _refusal(reason: str, seconds: float) -> Overloaded:
    metrics.ADMISSION_REFUSALS.labels(reason).inc()
    return Overloaded(f"{_WHAT[reason]}; try again in {max(seconds, 1):.0f} s", seconds)
