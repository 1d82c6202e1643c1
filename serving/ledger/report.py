"""The two views of the ledger: what tenants pay (price) and what serving them costs (cost).

Price: tokens times the tariff. The list price ignores the tariff's windows and batch prices.

Cost: GPU time times the price of a GPU. The busy time of all GPUs in a period is shared among the
requests that ended in it, in proportion to their time on ranks; the rest of the GPU time is idle
and belongs to no request.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from serving.ledger.query import CapacitySum, GroupBy, Query, UsageSum
from serving.ledger.records import SECOND
from serving.ledger.tariff import ZERO, Amounts, Tariff, Tokens

_HOUR_US = Decimal(3_600 * SECOND)


@dataclass(frozen=True, slots=True)
class Row:
    """Usage of a group of requests in a period."""

    start: int
    """Start of the period, Unix time."""
    tenant: str | None
    model: str | None
    key_id: str | None
    tokens: Tokens
    rank_seconds: Decimal
    list_price: Amounts | None
    """Price without windows and batch prices. None if the tariff has no prices for the model."""
    price: Amounts | None
    cost: Decimal | None
    """Cost of the requests' share of the busy GPU time. None if the price of a GPU is not set, or
    if no GPU time is recorded in the period."""
    batch: bool | None = None
    """Whether the requests were lines of batches. None if the report is not grouped by batch."""


@dataclass(frozen=True, slots=True)
class PeriodCost:
    """GPU time of a period, and its cost."""

    start: int
    gpu_hours: Decimal
    busy_hours: Decimal
    """Part of the GPU time that requests used."""
    total: Decimal
    busy: Decimal
    idle: Decimal
    """Cost of the GPU time that no request used."""


@dataclass(frozen=True, slots=True)
class Report:
    """Usage, price and cost of all periods."""

    currency: str
    rows: tuple[Row, ...]
    periods: tuple[PeriodCost, ...]
    """Periods with GPU time; empty if no GPU price is set."""

    @property
    def price(self) -> Decimal:
        """Sum of the rows' prices; rows without a price are left out."""
        return sum((row.price.total for row in self.rows if row.price), Decimal(0))

    @property
    def list_price(self) -> Decimal:
        """Sum of the rows' list prices; rows without one are left out."""
        return sum((row.list_price.total for row in self.rows if row.list_price), Decimal(0))

    @property
    def cost(self) -> Decimal:
        """Cost of all GPU time, including idle time."""
        return sum((period.total for period in self.periods), Decimal(0))


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return one row per group over all periods, starting with its first one."""
    found: dict[tuple[str | bool | None, ...], Row] = {}
    for row in rows:
        group = (row.tenant, row.model, row.key_id, row.batch)
        before = found.get(group)
        if before is None:
            found[group] = row
            continue
        found[group] = replace(
            before,
            tokens=before.tokens + row.tokens,
            rank_seconds=before.rank_seconds + row.rank_seconds,
            list_price=_sum(before.list_price, row.list_price),
            price=_sum(before.price, row.price),
            # Periods without GPU records have no cost.
            cost=row.cost if before.cost is None else before.cost + (row.cost or 0),
        )
    return list(found.values())


def _sum(first: Amounts | None, second: Amounts | None) -> Amounts | None:
    return None if first is None or second is None else first + second


def margin(price: Decimal, cost: Decimal) -> Decimal | None:
    """Return the profit relative to the cost, (price - cost) / cost, or None without a cost."""
    return None if not cost else (price - cost) / cost


def build_report(
    query: Query,
    tariff: Tariff,
    gpu_hour_price: Decimal | None,
    *,
    usage: Iterable[UsageSum],
    capacity: Mapping[int, CapacitySum],
    rank_us: Mapping[int, int],
) -> Report:
    """Return usage, price and cost.

    Args:
        query: The requests to include, and how to group them.
        tariff: Prices of tokens.
        gpu_hour_price: Price of a GPU-hour. If None, costs are not computed.
        usage: Sums over the requests.
        capacity: GPU time, by start of the period.
        rank_us: Time of all requests on ranks, microseconds, by start of the period. The query's
            filters do not apply to it.
    """
    periods: dict[int, PeriodCost] = {}
    if gpu_hour_price is not None:
        periods = {
            start: _period(found, rank_us.get(start, 0), gpu_hour_price)
            for start, found in sorted(capacity.items())
        }
    rows = tuple(
        _row(group, sums, tariff, periods, rank_us) for group, sums in _grouped(usage, query)
    )
    return Report(tariff.currency, rows, tuple(periods.values()))


_Group = tuple[int, str | None, str | None, str | None, bool | None]


def _grouped(sums: Iterable[UsageSum], query: Query) -> list[tuple[_Group, list[UsageSum]]]:
    """Combine the sums of a group whose models and quarter hours may differ in price."""
    groups: dict[_Group, list[UsageSum]] = {}
    for each in sums:
        model = each.model if GroupBy.MODEL in query.group_by else None
        batch = each.batch if GroupBy.BATCH in query.group_by else None
        groups.setdefault((each.start, each.tenant, model, each.key_id, batch), []).append(each)
    return sorted(groups.items(), key=lambda item: tuple(str(part or "") for part in item[0]))


def _row(
    group: _Group,
    sums: list[UsageSum],
    tariff: Tariff,
    periods: Mapping[int, PeriodCost],
    ranks: Mapping[int, int],
) -> Row:
    start, tenant, model, key_id, batch = group
    tokens, rank_us = Tokens(), 0
    listed: Amounts | None = ZERO
    billed: Amounts | None = ZERO
    for each in sums:
        tokens += each.tokens
        rank_us += each.rank_us
        prices = tariff.prices(each.model, each.start)
        if prices is None or listed is None or billed is None:
            # An incomplete sum would look like a bill.
            listed = billed = None
        else:
            listed += prices.of(each.tokens)
            billed += prices.at(each.quarter, each.tokens, batch=each.batch)
    cost = None
    if (period := periods.get(start)) is not None:
        all_us = ranks.get(start, 0)
        cost = period.busy * rank_us / all_us if all_us else Decimal(0)
    return Row(
        start,
        tenant,
        model,
        key_id,
        tokens,
        Decimal(rank_us) / SECOND,
        listed,
        billed,
        cost,
        batch,
    )


def _period(capacity: CapacitySum, rank_us: int, gpu_hour_price: Decimal) -> PeriodCost:
    # Busy time without a request (canaries, the start of an engine) is idle.
    busy_us = capacity.busy_us if rank_us else 0
    hours, busy_hours = capacity.gpu_us / _HOUR_US, busy_us / _HOUR_US
    total, busy = hours * gpu_hour_price, busy_hours * gpu_hour_price
    return PeriodCost(capacity.start, hours, busy_hours, total, busy, total - busy)
