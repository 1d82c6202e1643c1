"""Budgets of tenants and keys: reservations on the request path, and the policy during outages.

A request of a tenant or key with a budget reserves its maximum price before it is placed. It waits
for the database for at most ``ledger.budget_timeout``; concurrent requests share one transaction. A
request without a budget costs two lookups, and there is no cost per token.

While the database does not respond, ``ledger.budget_down`` applies. Budgets known to be used up
remain so. Every request is recorded in the ledger's spool and counts as spent once the database has
the record. After a failure, the database is not queried for one second.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Literal, Protocol

import structlog

from serving.clock import Clock, rfc3339
from serving.errors import BudgetExceeded, NotReady
from serving.ledger.budget import Budget, Claim, Period, Scope, Settlement, Verdict, money
from serving.ledger.records import RecordIds
from serving.request_context import RequestContext
from serving.telemetry import metrics

REST_SECONDS = 1.0
"""Time after a failure during which the database is not queried, seconds."""
RENEW_SECONDS = 20.0
"""Interval at which leases are renewed, seconds; a third of ``budget_store.LEASE``."""
SETTLE_SECONDS = 0.1
"""Maximum time that a settlement waits in order to share a transaction with requests, seconds."""
HELD_RETRY_SECONDS = 1.0
"""Retry-After while the rest of a budget is reserved by requests in flight, seconds."""
_BATCH = 256
"""Maximum number of claims, and of settlements, per transaction."""
_BACKLOG = 100_000
"""Maximum number of settlements waiting for the database. Without a settlement, a reservation ends
when its request is recorded or its lease expires."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

for _scope in Scope:
    for _period in Period:  # exported as 0 from the start
        metrics.BUDGET_REFUSALS.labels(_scope.value, _period.value)
        metrics.BUDGET_WARNINGS.labels(_scope.value, _period.value)
for _reason in ("budget", "budgets_unavailable"):
    metrics.ADMISSION_REFUSALS.labels(_reason)


class Store(Protocol):
    """The part of ``serving.ledger.budget_store.BudgetStore`` that is used here."""

    def update(
        self, claims: Sequence[Claim], settlements: Sequence[Settlement], *, renew: bool, now: int
    ) -> list[Verdict]:
        """Decide on claims and write settlements. The call blocks and can raise any exception."""
        ...


class Prices(Protocol):
    """Prices of one model: ``serving.ledger.budget.ModelPrice``."""

    def highest(self, prompt: int, output: int, now: float) -> int:
        """Return the maximum price of a prompt and its output, in ``budget.UNIT``."""
        ...

    def of(self, prompt: int, cached: int, output: int, now: float, *, batch: bool) -> int:
        """Return the price of a request or a batch's line that ends now, in ``budget.UNIT``."""
        ...


BudgetsOf = Callable[[str, str | None], Sequence[Budget]]
"""Function that returns the budgets of a tenant and a key; must not block."""


@dataclass(slots=True, eq=False)
class Reservation:
    """One prompt's share of its budgets."""

    budgets: "Budgets"
    prices: Prices
    claim: Claim
    batch: bool = False
    """Whether the prompt is a line of a batch."""
    _over: bool = field(default=False, init=False)

    def settle(self, *, prompt: int, cached: int, output: int) -> None:
        """Replace the reserved price with the price of the used tokens. Safe to call twice."""
        if not self._over:
            self._over = True
            now = self.budgets.clock.time()
            amount = self.prices.of(prompt, cached, output, now, batch=self.batch)
            self.budgets.settle(self.claim, amount)

    def give_back(self) -> None:
        """End the reservation of a prompt that used no tokens. Safe to call twice."""
        if not self._over:
            self._over = True
            self.budgets.give_back(self.claim)


@dataclass(slots=True, eq=False)
class _Waiting:
    claim: Claim
    verdict: asyncio.Future[Verdict | None]


class Budgets:
    """Reserves from budgets in a store. Not thread-safe: all calls come from one event loop."""

    def __init__(
        self,
        budgets_of: BudgetsOf,
        store: Store,
        clock: Clock,
        *,
        record_ids: RecordIds,
        timeout: float,
        down: Literal["open", "closed"] = "open",
        currency: str = "",
    ) -> None:
        """Start without reservations.

        Args:
            budgets_of: Returns the budgets that apply to a request.
            store: The store; called in a thread that this object owns.
            clock: The router's clock.
            record_ids: Ids of the ledger's records.
            timeout: Maximum time that a request waits for the store, seconds.
            down: Whether to admit requests without a reservation ("open") or reject them ("closed")
                while the store does not respond.
            currency: Currency code for messages.
        """
        self._budgets_of = budgets_of
        self._store = store
        self.clock = clock
        self._record_ids = record_ids
        self._timeout = timeout
        self._down = down
        self._currency = currency
        self._numbers = count()
        self._waiting: list[_Waiting] = []
        self._settlements: list[Settlement] = []
        self._held: set[int] = set()
        """Numbers of the claims that may be reserved in the store and are not settled yet."""
        self._down_until = float("-inf")
        self._used_up: dict[Budget, int] = {}
        """Budgets known to be used up, and the Unix time at which they renew."""
        self._warned: dict[Budget, int] = {}
        """Budgets whose soft limit has been logged, and the end of the period of that log line."""
        self._thread = ThreadPoolExecutor(1, "budgets")
        self._runner: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._renewal_due = False
        self._settling: asyncio.TimerHandle | None = None
        self._settlements_due = False

    def start(self) -> None:
        """Connect to the store; the first connection takes longer than a request should wait."""
        self._renewal_due = True
        self._run()

    def of(self, context: RequestContext) -> Sequence[Budget]:
        """Return the budgets that apply to a request."""
        return self._budgets_of(context.tenant, context.key_id)

    def check(self, context: RequestContext) -> None:
        """Reject a request whose budget is known to be used up.

        Raises:
            BudgetExceeded: A budget is known to be used up.
        """
        if not self._used_up:
            return
        now = self.clock.time()
        for budget in self.of(context):
            until = self._used_up.get(budget)
            if until is None:
                continue
            if now < until:
                raise self._refusal(budget, now)
            del self._used_up[budget]

    async def reserve(
        self,
        context: RequestContext,
        budgets: Sequence[Budget],
        prices: Prices,
        prompt: int,
        output: int,
    ) -> Reservation:
        """Reserve the maximum price of a prompt, and add warnings to the request's record.

        Args:
            context: The request's context.
            budgets: Budgets returned by ``of``, at least one.
            prices: Prices of the request's model.
            prompt: Prompt tokens.
            output: Maximum output tokens, over all choices.

        Raises:
            BudgetExceeded: A budget is used up.
            NotReady: The store does not respond, and ``down`` is "closed".
        """
        self.check(context)
        record, now = context.record, self.clock.time()
        batch = context.yielding is not None
        if record.record_id is None:
            record.record_id = next(self._record_ids)
        claim = Claim(
            record.record_id,
            next(self._numbers),
            context.tenant,
            context.key_id,
            prices.highest(prompt, output, now),
            budgets,
        )
        verdict = await self._ask(claim)
        if verdict is None:
            if self._down == "closed":
                self.give_back(claim)
                metrics.ADMISSION_REFUSALS.labels("budgets_unavailable").inc()
                raise NotReady("budgets cannot be checked at the moment; try again")
            return Reservation(self, prices, claim, batch)
        if verdict.refused is not None:
            self._held.discard(claim.number)
            budget, spent, held = verdict.refused
            if budget.hard is not None and spent >= budget.hard:
                self._used_up[budget] = budget.renews_at(now)
            raise self._refusal(budget, now, spent, held)
        for budget, spent in verdict.warnings:
            record.budget_warning = self._warn(budget, now, spent)
        return Reservation(self, prices, claim, batch)

    def settle(self, claim: Claim, amount: int) -> None:
        """Replace a claim with the price of the used tokens, in the background."""
        self._end(claim, amount)

    def give_back(self, claim: Claim) -> None:
        """Remove a claim, in the background."""
        self._end(claim, None)

    async def close(self) -> None:
        """Write pending settlements, for at most the timeout, and stop."""
        self._settle()
        for timer in (self._renewal, self._settling):
            if timer is not None:
                timer.cancel()
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.wait({runner}, timeout=self._timeout)
            runner.cancel()
            await asyncio.wait({runner})
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- messages -----------------------------------------------------------------------

    def _refusal(
        self, budget: Budget, now: float, spent: int | None = None, held: int = 0
    ) -> BudgetExceeded:
        scope, period = budget.scope.value, budget.period.value
        metrics.BUDGET_REFUSALS.labels(scope, period).inc()
        metrics.ADMISSION_REFUSALS.labels("budget").inc()
        renews_at = budget.renews_at(now)
        hard = budget.hard or 0
        what = f"the {period}'s budget of {scope} {budget.name}, {self._amount(hard)},"
        retry_after = renews_at - now
        if spent is not None and spent < hard:
            retry_after = min(retry_after, HELD_RETRY_SECONDS)
            why = (
                f"{what} has {self._amount(spent)} spent, and requests in flight may use the rest "
                f"({self._amount(held)}): try again when they have ended, or after its renewal"
            )
        else:
            why = f"{what} is used up: it renews"
        return BudgetExceeded(
            f"{why} at {rfc3339(renews_at)}", renews_at=renews_at, retry_after=retry_after
        )

    def _warn(self, budget: Budget, now: float, spent: int) -> str:
        """Count and log a warning; return its text as ASCII, for a header."""
        scope, period = budget.scope.value, budget.period.value
        metrics.BUDGET_WARNINGS.labels(scope, period).inc()
        renews_at = budget.renews_at(now)
        if self._warned.get(budget) != renews_at:  # once per period
            self._warned[budget] = renews_at
            log.warning(
                "a budget's soft limit is reached",
                scope=scope,
                name=budget.name,
                period=period,
                spent=money(spent),
                soft=money(budget.soft or 0),
                hard=None if budget.hard is None else money(budget.hard),
            )
        limit = "" if budget.hard is None else f"; limit {self._amount(budget.hard)}"
        return (
            f"{scope} {budget.name} has spent {self._amount(spent)} this {period}, above "
            f"{self._amount(budget.soft or 0)}{limit}; renews {rfc3339(renews_at)}"
        )

    def _amount(self, amount: int) -> str:
        return f"{money(amount)} {self._currency}"

    # -- the store ----------------------------------------------------------------------

    async def _ask(self, claim: Claim) -> Verdict | None:
        """Return the store's verdict; None if it does not respond in time or has just failed."""
        if self.clock.monotonic() < self._down_until:
            return None
        self._held.add(claim.number)
        waiting = _Waiting(claim, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._run()
        try:
            async with asyncio.timeout(self._timeout):
                return await waiting.verdict
        except TimeoutError:
            self._failed(f"no answer within {self._timeout} s")
            return None
        except asyncio.CancelledError:
            self.give_back(claim)
            raise

    def _end(self, claim: Claim, amount: int | None) -> None:
        if claim.number not in self._held:
            return  # the store never received it
        self._held.discard(claim.number)
        if len(self._settlements) < _BACKLOG:
            self._settlements.append(Settlement(claim.record_id, claim.number, amount))
            if self._settling is None:
                loop = asyncio.get_running_loop()
                self._settling = loop.call_later(SETTLE_SECONDS, self._settle)

    def _run(self) -> None:
        """Start writing pending claims and settlements, unless a write is in progress."""
        loop = asyncio.get_running_loop()
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._write())
        if self._renewal is None:
            self._renewal = loop.call_later(RENEW_SECONDS, self._renew)

    def _settle(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._settlements:
            self._settlements_due = True
            self._run()

    def _renew(self) -> None:
        self._renewal = None
        if self._held:
            self._renewal_due = True
            self._run()

    async def _write(self) -> None:
        """Write until nothing is due; failed settlements and renewals are retried."""
        while self._waiting or self._settlements_due or self._renewal_due:
            if not await self._write_batch():
                await asyncio.sleep(max(self._down_until - self.clock.monotonic(), 0.0))

    async def _write_batch(self) -> bool:
        # Requests that no longer wait must not reserve.
        waiting = [each for each in self._waiting[:_BATCH] if not each.verdict.done()]
        del self._waiting[:_BATCH]
        settlements, renew = self._settlements[:_BATCH], self._renewal_due
        claims = [each.claim for each in waiting]
        update = partial(
            self._store.update, claims, settlements, renew=renew, now=int(self.clock.time())
        )
        try:
            verdicts: Sequence[Verdict | None] = await asyncio.get_running_loop().run_in_executor(
                self._thread, update
            )
        except Exception as error:  # noqa: BLE001  the policy applies to any failure
            self._failed(repr(error))
            verdicts, failed = [None] * len(waiting), True
        else:
            failed = False
            del self._settlements[: len(settlements)]
            self._settlements_due = self._settlements_due and bool(self._settlements)
            self._renewal_due = self._renewal_due and not renew
        for each, verdict in zip(waiting, verdicts, strict=True):
            if not each.verdict.done():
                each.verdict.set_result(verdict)
        return not failed

    def _failed(self, reason: str) -> None:
        now = self.clock.monotonic()
        metrics.BUDGET_STORE_FAILURES.inc()
        if now >= self._down_until:
            log.warning("the budgets' database does not answer", down=self._down, reason=reason)
        self._down_until = now + REST_SECONDS
