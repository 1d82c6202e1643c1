"""Quotas: per-tenant limits on requests per minute, tokens per minute and concurrent streams.

Prompt tokens are charged when a request enters, generated tokens when it ends. The charge may
exceed the limit; further requests are then rejected until a sufficient part of the window has
passed.

A request of a limited tenant costs a few calls to the store; a request of an unlimited tenant
costs none. After a failure, the shared store is not called for one second, which limits the
number of delayed requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Literal, TypeVar
from uuid import uuid4

import structlog

from serving.admission.quota_store import STORE_ERRORS, MemoryQuotas, QuotaStore
from serving.clock import Clock
from serving.errors import NotReady, Overloaded
from serving.settings import AdmissionSettings
from serving.telemetry import metrics

REST_SECONDS = 1.0
"""Time after a failure during which the shared store is not called, seconds."""
STREAM_RETRY_SECONDS = 1.0
"""Retry-After for a tenant with too many streams, seconds; the time until one ends is unknown."""

R = TypeVar("R")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of one tenant. None means unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Maximum number of prompt and generated tokens per minute."""
    concurrent_streams: int | None = None
    """Maximum number of requests in flight, including queued ones."""
    weight: float = 1.0
    """Share relative to other tenants while the fleet is saturated."""

    def __post_init__(self) -> None:
        """Check the weight.

        Raises:
            ValueError: The weight is not above 0.
        """
        if not self.weight > 0:
            raise ValueError(f"a tenant's weight must be above 0, got {self.weight}")

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent_streams is not None
        )


LimitsOf = Callable[[str], TenantLimits]
"""Returns the limits of a tenant by name; must not block."""


def default_limits(settings: AdmissionSettings) -> LimitsOf:
    """Return a function that returns the limits in the settings for every tenant."""
    limits = TenantLimits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        concurrent_streams=settings.concurrent_streams,
    )
    return lambda _tenant: limits


class Quotas:
    """Counts usage per tenant, and rejects requests above the tenant's limits."""

    def __init__(
        self,
        limits_of: LimitsOf,
        clock: Clock,
        shared: QuotaStore | None = None,
        *,
        own: QuotaStore | None = None,
        timeout: float = 1.0,
        down: Literal["open", "closed"] = "open",
    ) -> None:
        """Start with empty counters.

        Args:
            limits_of: Returns a tenant's limits.
            clock: The clock for waits and leases.
            shared: The store shared by several routers. If None, usage is counted in this process
                only.
            own: The store of this process, used without a shared store or while it does not
                respond; in memory by default.
            timeout: Timeout of a call to the shared store, seconds.
            down: Whether to count in this process ("open") or reject requests ("closed") while the
                shared store does not respond.
        """
        self._limits_of = limits_of
        self._clock = clock
        self._shared = shared
        self._timeout = timeout
        self._down = down
        self._down_until = float("-inf")
        self._own = own
        self._rejected: dict[str, _Rejected] = {}
        self._streams = count()
        self._name = uuid4().hex[:12]
        # Charges and closed streams not yet written to a store in the background.
        self._debts: dict[tuple[QuotaStore, str], int] = {}
        self._ended: list[Lease] = []
        self._settler: asyncio.Task[None] | None = None

    @property
    def pending(self) -> bool:
        """Whether charges or closed streams have not been written to a store yet."""
        return bool(self._debts or self._ended)

    def check(self, tenant: str) -> None:
        """Reject a tenant that was rejected recently and whose window has not ended yet.

        Raises:
            Overloaded: The tenant's quota is exhausted.
        """
        rejection = self._rejected.get(tenant)
        if rejection is None:
            return
        left = rejection.until - self._clock.monotonic()
        if left <= 0 or rejection.limits != self._limits_of(tenant):
            del self._rejected[tenant]
            return
        raise _rejection(rejection.reason, left)

    async def take(self, tenant: str, tokens: int, seconds: float) -> "Lease":
        """Count a request and its prompt tokens.

        Args:
            tenant: The tenant of the request.
            tokens: Prompt tokens.
            seconds: Maximum duration of the request.

        Raises:
            Overloaded: A quota is exhausted.
            NotReady: The shared store does not respond, and ``down`` is "closed".
        """
        limits = self._limits_of(tenant)
        return await self._call(lambda store: self._take(store, tenant, limits, tokens, seconds))

    async def close(self) -> None:
        """Write pending charges, and close the stores."""
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
            Overloaded: A quota is exhausted.
        """
        limits, store, tenant = lease.limits, lease.store, lease.tenant
        seconds = lease.until - self._clock.monotonic()
        most = limits.concurrent_streams
        if most is not None and not await store.open_stream(tenant, lease.stream, most, seconds):
            raise _rejection("concurrent_streams", STREAM_RETRY_SECONDS)
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
        self._rejected[lease.tenant] = _Rejected(until, reason, lease.limits)
        return _rejection(reason, seconds)

    async def _call(self, function: Callable[[QuotaStore], Awaitable[R]]) -> R:
        """Call the shared store, or the store of this process.

        Raises:
            NotReady: The shared store does not respond, and ``down`` is "closed".
        """
        if self._shared is not None:
            if self._clock.monotonic() >= self._down_until:
                try:
                    async with asyncio.timeout(self._timeout):
                        return await function(self._shared)
                except STORE_ERRORS as error:
                    self._failed(error)
            if self._down == "closed":
                metrics.ADMISSION_REFUSALS.labels("quotas_unavailable").inc()
                raise NotReady("quotas cannot be checked at the moment; try again")
        if self._own is None:
            self._own = MemoryQuotas(self._clock.monotonic)
        return await function(self._own)

    def _failed(self, error: Exception) -> None:
        self._down_until = self._clock.monotonic() + REST_SECONDS
        metrics.QUOTA_STORE_FAILURES.inc()
        log.warning("Redis does not answer", down=self._down, reason=repr(error))

    # -- written in the background ------------------------------------------------------

    def settle(self, lease: "Lease", tokens: int) -> None:
        """Charge (or refund, if negative) ``tokens`` and close the stream, in the background."""
        if tokens and lease.limits.tokens_per_minute is not None:
            key = (lease.store, lease.tenant)
            self._debts[key] = self._debts.get(key, 0) + tokens
        if lease.limits.concurrent_streams is not None:
            self._ended.append(lease)
        if (self._debts or self._ended) and (self._settler is None or self._settler.done()):
            self._settler = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        """Write until nothing is pending; retry writes that fail in the shared store."""
        while self._debts or self._ended:
            await self._settle_once()
            if self._debts or self._ended:
                await asyncio.sleep(max(self._down_until - self._clock.monotonic(), 0.0))

    async def _settle_once(self) -> None:
        debts, self._debts = self._debts, {}
        ended, self._ended = self._ended, []
        for lease in ended:
            done = await self._write(lease.store, partial(_close_stream, lease))
            if not done and lease.until > self._clock.monotonic():
                self._ended.append(lease)
        for (store, tenant), tokens in debts.items():
            if not await self._write(store, partial(_charge, tenant, tokens)):
                key = (store, tenant)
                self._debts[key] = self._debts.get(key, 0) + tokens

    async def _write(
        self, store: QuotaStore, function: Callable[[QuotaStore], Awaitable[None]]
    ) -> bool:
        if store is self._shared and self._clock.monotonic() < self._down_until:
            return False
        try:
            async with asyncio.timeout(self._timeout):
                await function(store)
        except STORE_ERRORS as error:
            self._failed(error)
            return False
        return True


async def _close_stream(lease: "Lease", store: QuotaStore) -> None:
    await store.close_stream(lease.tenant, lease.stream)


async def _charge(tenant: str, tokens: int, store: QuotaStore) -> None:
    await store.charge_tokens(tenant, tokens)


@dataclass(frozen=True, slots=True)
class _Rejected:
    """A rejected tenant, and the time from which a retry is worthwhile."""

    until: float
    reason: str
    limits: TenantLimits
    """The limits at the time of the rejection; if they change, the rejection no longer applies."""


@dataclass(slots=True, eq=False)
class Lease:
    """One request's share of its tenant's quotas."""

    quotas: Quotas
    store: QuotaStore
    tenant: str
    stream: str
    until: float
    """Expiry of the stream, seconds on the monotonic clock."""
    limits: TenantLimits
    prompt_tokens: int
    _over: bool = field(default=False, init=False)

    def end(self, generated_tokens: int) -> None:
        """Charge the generated tokens and close the stream. Safe to call twice."""
        self._settle(generated_tokens)

    def give_back(self, tokens: int | None = None) -> None:
        """Refund the charge of a request that was rejected after it was charged.

        Args:
            tokens: Tokens to refund; the prompt tokens by default.
        """
        self._settle(-self.prompt_tokens if tokens is None else -tokens)

    def _settle(self, tokens: int) -> None:
        if not self._over:
            self._over = True
            self.quotas.settle(self, tokens)


_WHAT = {
    "requests_per_minute": "your request quota for this minute is used up",
    "tokens_per_minute": "your token quota for this minute is used up",
    "concurrent_streams": "you have reached your limit of concurrent requests",
}
for _reason in (*_WHAT, "quotas_unavailable"):
    metrics.ADMISSION_REFUSALS.labels(_reason)  # exported as 0 from the start


def _rejection(reason: str, seconds: float) -> Overloaded:
    metrics.ADMISSION_REFUSALS.labels(reason).inc()
    return Overloaded(f"{_WHAT[reason]}; try again in {max(seconds, 1):.0f} s", seconds)
