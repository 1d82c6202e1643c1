"""Today's usage, price and cost, and the state of budgets.

Users see the budgets of their tenant and key; admins see all budgets, and usage by tenant and
model. The ledger's database is read in a thread, only when a console asks.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from serving.clock import Clock
from serving.edge.auth.authenticator import Permission, Principal
from serving.edge.auth.keys import KeyRing
from serving.ledger.budget import UNIT, Budget, Level, Scope
from serving.ledger.query import DAY, Query
from serving.ledger.report import Report, Row

MAX_ROWS = 200
"""Maximum number of rows of usage and of budgets; further rows are only counted."""
FRESH = 1.0
"""Time for which an answer is reused, seconds. However often consoles ask, each key has at most one
query in the thread's queue."""
_MILLION = 10**6


class Source(Protocol):
    """The ledger: a ``serving.ledger.view.LedgerView``. Its methods block."""

    def report(self, query: Query) -> Report:
        """Return usage, price and cost."""
        ...

    def levels(self, tenants: Iterable[str], now: int) -> dict[str, Level]:
        """Return what each tenant has spent and reserved."""
        ...


class Spending:
    """Queries the ledger for consoles, in one thread."""

    def __init__(self, source: Source, keys: Callable[[], KeyRing] | None, clock: Clock) -> None:
        """Start the thread; nothing is read yet.

        Args:
            source: The ledger.
            keys: Returns the key file's content. None: no key is required, so no budget exists.
            clock: Time of today and of the budgets' periods.
        """
        self._source = source
        self._keys = keys
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "console-ledger")
        self._answers: dict[object, tuple[float, asyncio.Future[dict[str, Any]]]] = {}
        """Start and result of the newest query for a tenant, key and role."""

    def close(self) -> None:
        """End the thread without waiting for a running query."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def today(self, principal: Principal) -> dict[str, Any]:
        """Return usage and budgets that a principal may see, at most ``FRESH`` seconds old.

        Returns:
            ``budgets``: amounts in the tariff's currency, by tenant or key. For admins also
            ``usage``: rows since midnight UTC by tenant and model, and ``total``: their price, and
            the cost of all GPU time if its price is set.

        Raises:
            NotReady: The database does not respond.
        """
        asked = (principal.tenant, principal.key_id, principal.has(Permission.ADMIN))
        oldest = self._clock.monotonic() - FRESH
        self._answers = {
            key: (at, answer)
            for key, (at, answer) in self._answers.items()
            if at > oldest or not answer.done()
        }
        if asked not in self._answers:
            loop = asyncio.get_running_loop()
            answer = asyncio.ensure_future(
                loop.run_in_executor(self._thread, self._read, principal)
            )
            self._answers[asked] = self._clock.monotonic(), answer
        # A client that leaves does not cancel the query for the others.
        return await asyncio.shield(self._answers[asked][1])

    def _read(self, principal: Principal) -> dict[str, Any]:
        now = int(self._clock.time())
        midnight = now // DAY * DAY
        query = Query(midnight, midnight + DAY)
        owners = self._budgets(principal)
        shown = owners[:MAX_ROWS]
        levels = self._source.levels(sorted({tenant for tenant, _ in shown}), now) if shown else {}
        found: dict[str, Any] = {
            "budgets": [_budget(tenant, each, levels, now) for tenant, each in shown],
            "hidden_budgets": len(owners) - len(shown),
        }
        if principal.has(Permission.ADMIN):
            report = self._source.report(query)
            rows = sorted(report.rows, key=lambda row: -row.tokens.output)
            found["usage"] = [_usage(row) for row in rows[:MAX_ROWS]]
            found["hidden_usage"] = max(len(rows) - MAX_ROWS, 0)
            found["total"] = _total(report)
        return found

    def _budgets(self, principal: Principal) -> list[tuple[str, Budget]]:
        """Return budgets with their tenants, in the order of the key file."""
        if self._keys is None:
            return []
        ring = self._keys()
        if not principal.has(Permission.ADMIN):
            mine = ring.budgets_of(principal.tenant, principal.key_id)
            return [(principal.tenant, budget) for budget in mine]
        owners = {key.id: key.tenant for key in ring.keys.values()}
        return [
            (name if scope is Scope.TENANT else owners[name], budget)
            for (scope, name), budgets in ring.budgets.items()
            for budget in budgets
        ]


def _budget(tenant: str, budget: Budget, levels: Mapping[str, Level], now: int) -> dict[str, Any]:
    spent, held = levels[tenant].of(budget)
    return {
        "tenant": tenant,
        "key": budget.name if budget.scope is Scope.KEY else None,
        "period": budget.period.value,
        "spent": spent / UNIT,
        "reserved": held / UNIT,
        "soft": None if budget.soft is None else budget.soft / UNIT,
        "hard": None if budget.hard is None else budget.hard / UNIT,
        "renews_at": budget.renews_at(now),
    }


def _usage(row: Row) -> dict[str, Any]:
    tokens = row.tokens
    return {
        "tenant": row.tenant,
        "model": row.model,
        "requests": tokens.requests,
        "prompt": tokens.prompt,
        "cached": tokens.cached,
        "output": tokens.output,
        "price": None if row.price is None else float(row.price.total),
        "cost": None if row.cost is None else float(row.cost),
    }


def _total(report: Report) -> dict[str, Any]:
    output = sum(row.tokens.output for row in report.rows)
    costs: Sequence[Any] = report.periods
    cost = float(report.cost) if costs else None
    return {
        "currency": report.currency,
        "requests": sum(row.tokens.requests for row in report.rows),
        "output": output,
        "price": float(report.price),
        "cost": cost,
        "cost_per_million": cost * _MILLION / output if cost is not None and output else None,
        "gpu_hours": float(sum(period.gpu_hours for period in costs)),
        "busy_hours": float(sum(period.busy_hours for period in costs)),
    }
