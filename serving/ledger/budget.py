"""Budgets: how much a tenant or a key may spend per day or month; no I/O (ADR 24).

Amounts are whole billionths of the tariff's currency, so that databases sum them exactly. Days and
months begin at 0:00 UTC.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum

from serving.ledger.query import DAY
from serving.ledger.records import BATCH_PROTOCOL, SECOND, RequestUsage
from serving.ledger.tariff import QUARTERS, Amounts, Tariff, Tokens, load_tariff
from serving.settings import LedgerSettings

UNIT = 10**9
"""Amount that equals one unit of the currency."""
_QUARTER = 900


def units(amount: Decimal) -> int:
    """Return an amount of money in billionths, rounded up."""
    return int((amount * UNIT).to_integral_value(ROUND_CEILING))


def money(amount: int) -> str:
    """Format billionths as an amount of money, for messages."""
    return f"{Decimal(amount) / UNIT:.6f}".rstrip("0").rstrip(".")


class Scope(StrEnum):
    """The requests that a budget counts."""

    TENANT = "tenant"
    KEY = "key"


class Period(StrEnum):
    """How often a budget renews."""

    DAY = "day"
    MONTH = "month"

    def bounds(self, now: float) -> tuple[int, int]:
        """Return start and end (exclusive) of the period that contains ``now``, Unix seconds."""
        day = dt.datetime.fromtimestamp(now, dt.UTC).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        if self is Period.DAY:
            end = day + dt.timedelta(days=1)
        else:
            day = day.replace(day=1)
            end = (day + dt.timedelta(days=32)).replace(day=1)
        return int(day.timestamp()), int(end.timestamp())


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a tenant, or one of its keys, may spend in a period."""

    scope: Scope
    name: str
    """Name of the tenant, or id of the key."""
    period: Period
    soft: int | None = None
    """Amount from which responses carry a warning. None means no warning."""
    hard: int | None = None
    """Amount from which requests are rejected. None means no hard limit."""

    def renews_at(self, now: float) -> int:
        """Return the end of the current period, Unix seconds."""
        return self.period.bounds(now)[1]


@dataclass(slots=True, eq=False)
class Claim:
    """A request for a reservation, for one prompt."""

    record_id: str
    """Id of the request's future ledger record, which replaces the reservation."""
    number: int
    """Distinguishes reservations with the same ``record_id``."""
    tenant: str
    key_id: str | None
    amount: int
    """Maximum price of the prompt."""
    budgets: Sequence[Budget]


@dataclass(frozen=True, slots=True)
class Settlement:
    """The actual price of a finished prompt, which replaces the reserved one."""

    record_id: str
    number: int
    amount: int | None
    """Actual price. None if the prompt used no tokens, so that no record will replace the
    reservation."""


_WHOLE = None
"""Stands for all keys of a tenant."""


@dataclass(slots=True)
class Level:
    """Snapshot of the amounts that count against the budgets of one tenant and its keys."""

    spent: dict[tuple[str | None, Period], int] = field(default_factory=dict)
    """Prices of recorded requests in the current periods, by key; None stands for all keys."""
    held: dict[str | None, int] = field(default_factory=dict)
    """Reservations in force, by key; None stands for all keys."""

    def add(self, key_id: str, *, day: int = 0, month: int = 0, held: int = 0) -> None:
        """Add the amounts that one key has spent in the current day and month and has reserved."""
        for key in (key_id, _WHOLE):
            for period, amount in ((Period.DAY, day), (Period.MONTH, month)):
                self.spent[key, period] = self.spent.get((key, period), 0) + amount
            self.held[key] = self.held.get(key, 0) + held

    def of(self, budget: Budget) -> tuple[int, int]:
        """Return how much of a budget is spent and reserved in its current period."""
        key = budget.name if budget.scope is Scope.KEY else _WHOLE
        return self.spent.get((key, budget.period), 0), self.held.get(key, 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a claim became a reservation."""

    refused: tuple[Budget, int, int] | None = None
    """The budget that is used up, and its spent and reserved amounts. None if the claim was
    granted."""
    warnings: tuple[tuple[Budget, int], ...] = ()
    """Budgets whose soft limit is reached, and their spent amounts."""


def judge(claim: Claim, level: Level) -> Verdict:
    """Decide on a claim, and add it to ``level`` if it becomes a reservation.

    A claim is granted while the spent and reserved amounts are below the hard limit. The last
    reservation may exceed the limit: the whole budget can be spent, and is exceeded by less than
    the maximum price of one prompt.
    """
    warnings = []
    for budget in claim.budgets:
        spent, held = level.of(budget)
        if budget.hard is not None and spent + held >= budget.hard:
            return Verdict((budget, spent, held))
        if budget.soft is not None and spent >= budget.soft:
            warnings.append((budget, spent))
    level.add(claim.key_id or "", held=claim.amount)
    return Verdict(warnings=tuple(warnings))


def quarter_of(now: float) -> int:
    """Return the quarter hour of the day, 0 to 95."""
    return int(now) // _QUARTER % QUARTERS


Spending = tuple[str, str, int]
"""Tenant, key (empty without a key) and day (Unix time of its start) of requests."""


def charges(records: Iterable[RequestUsage], tariff: Tariff) -> dict[Spending, int]:
    """Return the price of records by tenant, key and day; models without prices cost nothing."""
    # Lists, because adding two ``Tokens`` takes as long as the rest of an insert.
    sums: dict[tuple[str, str | None, str, int, bool], list[int]] = {}
    for each in records:
        quarter, batch = each.finished_us // (_QUARTER * SECOND), each.protocol == BATCH_PROTOCOL
        group = (each.tenant, each.key_id, each.model, quarter, batch)
        counts = sums.get(group)
        if counts is None:
            counts = sums[group] = [0, 0, 0, 0]
        counts[0] += each.prompt_tokens
        counts[1] += each.cached_tokens
        counts[2] += each.output_tokens
        counts[3] += each.reasoning_tokens or 0
    found: dict[Spending, int] = {}
    for (tenant, key_id, model, quarter, batch), counts in sums.items():
        amounts = price(tariff, model, Tokens(0, *counts), quarter * _QUARTER, batch=batch)
        if amounts is not None:
            spending = (tenant, key_id or "", quarter // QUARTERS * DAY)
            found[spending] = found.get(spending, 0) + units(amounts.total)
    return found


def price(
    tariff: Tariff, model: str, tokens: Tokens, at: float, *, batch: bool = False
) -> Amounts | None:
    """Return the price of tokens of requests that end at a Unix time; None if unknown.

    Args:
        tariff: Prices of all models.
        model: Name of the model.
        tokens: The requests' tokens.
        at: Unix time, seconds.
        batch: Whether they are lines of batches.
    """
    prices = tariff.prices(model, at)
    return None if prices is None else prices.at(quarter_of(at), tokens, batch=batch)


class ModelPrice:
    """Prices of one model's requests, in ``UNIT``."""

    def __init__(self, tariff: Tariff, model: str) -> None:
        self._tariff = tariff
        self._model = model

    def highest(self, prompt: int, output: int, now: float) -> int:
        """Return the maximum price of a prompt and its output if it ends within a day.

        Args:
            prompt: Prompt tokens.
            output: Maximum output tokens, over all choices.
            now: Unix time, seconds.
        """
        found = [self._tariff.prices(self._model, at) for at in (now, now + DAY)]
        return max((units(each.highest(prompt, output)) for each in found if each), default=0)

    def of(self, prompt: int, cached: int, output: int, now: float, *, batch: bool) -> int:
        """Return the price of a request that ends now, with reasoning priced as output."""
        tokens = Tokens(1, prompt, cached, output)
        amounts = price(self._tariff, self._model, tokens, now, batch=batch)
        return 0 if amounts is None else units(amounts.total)


def why_no_budgets(settings: LedgerSettings, models: Sequence[str], now: float) -> str | None:
    """Return why budgets cannot be counted with these settings, or None if they can.

    Raises:
        SettingsError: The tariff cannot be used.
    """
    if settings.directory is None:
        return "budgets require a ledger: set ledger.directory"
    tariff = load_tariff(settings.tariff_file)
    for model in models:
        if tariff.prices(model, now) is None:
            return (
                f"budgets require prices: the tariff (ledger.tariff_file) has none of model {model}"
            )
    return None
