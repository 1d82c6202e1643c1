"""Sums over the ledger's records, computed by the database."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Label, func, literal_column, select

from serving.ledger.query import CapacitySum, GroupBy, Query, UsageSum
from serving.ledger.records import BATCH_PROTOCOL, SECOND
from serving.ledger.report import Report, build_report
from serving.ledger.schema import CAPACITY, REQUESTS
from serving.ledger.tariff import QUARTERS, Tariff, Tokens

_QUARTER_US = 900 * SECOND


def read_report(
    connection: Connection, query: Query, tariff: Tariff, gpu_hour_price: Decimal | None
) -> Report:
    """Return usage, price and cost; see ``build_report`` for the arguments."""
    costs = gpu_hour_price is not None
    return build_report(
        query,
        tariff,
        gpu_hour_price,
        usage=usage_sums(connection, query),
        capacity=capacity_sums(connection, query) if costs else {},
        rank_us=rank_sums(connection, query) if costs else {},
    )


def usage_sums(connection: Connection, query: Query) -> Iterator[UsageSum]:
    """Yield the sums by period, quarter hour of the day, model, kind, and the query's groups."""
    table = REQUESTS.c
    start = (table.finished_us // (query.width * SECOND) * query.width).label("start")
    quarter = (table.finished_us // _QUARTER_US % QUARTERS).label("quarter")
    # Prices depend on the model and on batches, so the database always groups by them.
    tenant = [table.tenant] if GroupBy.TENANT in query.group_by else []
    key = [table.key_id] if GroupBy.KEY in query.group_by else []
    # No bound parameters, so that PostgreSQL recognizes the selected expression as the grouped one.
    batch: Label[Any] = literal_column(f"(protocol = '{BATCH_PROTOCOL}')").label("batch")
    groups = [start, quarter, table.model, batch, *tenant, *key]
    statement = (
        select(
            *groups,
            func.count().label("requests"),
            func.sum(table.prompt_tokens).label("prompt"),
            func.sum(table.cached_tokens).label("cached"),
            func.sum(table.output_tokens).label("output"),
            func.coalesce(func.sum(table.reasoning_tokens), 0).label("reasoning"),
            func.sum(table.rank_us).label("rank_us"),
        )
        .where(
            table.finished_us >= query.start * SECOND,
            table.finished_us < query.end * SECOND,
        )
        .group_by(*groups)
        .order_by(*groups)
    )
    filters = (
        (table.tenant, query.tenants),
        (table.model, query.models),
        (table.key_id, query.keys),
    )
    for column, wanted in filters:
        if wanted:
            statement = statement.where(column.in_(wanted))
    if query.batch is not None:
        is_batch = table.protocol == BATCH_PROTOCOL
        statement = statement.where(is_batch if query.batch else ~is_batch)
    for row in connection.execute(statement):
        yield UsageSum(
            int(row.start),
            int(row.quarter),
            row.model,
            row.tenant if tenant else None,
            row.key_id if key else None,
            # PostgreSQL returns sums of BIGINT as NUMERIC.
            Tokens(
                row.requests,
                int(row.prompt),
                int(row.cached),
                int(row.output),
                int(row.reasoning),
            ),
            int(row.rank_us),
            bool(row.batch),
        )


def rank_sums(connection: Connection, query: Query) -> dict[int, int]:
    """Return the time of all requests on ranks by period, unfiltered, microseconds."""
    start = (REQUESTS.c.finished_us // (query.width * SECOND) * query.width).label("start")
    statement = (
        select(start, func.sum(REQUESTS.c.rank_us).label("rank_us"))
        .where(
            REQUESTS.c.finished_us >= query.start * SECOND,
            REQUESTS.c.finished_us < query.end * SECOND,
        )
        .group_by(start)
    )
    return {int(row.start): int(row.rank_us) for row in connection.execute(statement)}


def capacity_sums(connection: Connection, query: Query) -> dict[int, CapacitySum]:
    """Return the GPU time of all groups, by period."""
    table = CAPACITY.c
    start = (table.slot // query.width * query.width).label("start")
    statement = (
        select(
            start,
            func.sum(table.seconds * table.gpus).label("gpu_seconds"),
            func.sum(table.busy_us).label("busy_us"),
        )
        .where(table.slot >= query.start, table.slot < query.end)
        .group_by(start)
    )
    found = {}
    for row in connection.execute(statement):
        gpu_us = int(row.gpu_seconds) * SECOND
        found[int(row.start)] = CapacitySum(int(row.start), gpu_us, min(int(row.busy_us), gpu_us))
    return found
