"""The ledger over REST, in the format of OpenAI's organization usage and costs API.

A project in OpenAI's API is a tenant here, and costs are the prices in the tariff, which tenants
pay. Fields of OpenAI's results that do not apply here are null or 0.
"""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import msgspec
from fastapi import FastAPI, Request, Response

from serving.edge.usage_query import COSTS, LINE_ITEM, USAGE, UsageQuery, usage_query
from serving.errors import Unsupported
from serving.ledger.query import Query
from serving.ledger.report import Report, Row

_THREADS = 2
"""Number of threads for queries; a slow database delays queries, but never inference requests."""

# Amounts are encoded as decimal numbers and never converted to floats here.
_encoder = msgspec.json.Encoder(decimal_format="number")


class UsageSource(Protocol):
    """Source of the pages: a ``serving.ledger.view.LedgerView``, which requires SQLAlchemy."""

    def report(self, query: Query) -> Report:
        """Return usage, price and cost. The call blocks.

        Raises:
            NotReady: The database is unreachable or fails.
        """
        ...


class UsageReader:
    """Queries the ledger in threads, for both protocols."""

    def __init__(self, source: UsageSource | None) -> None:
        """Create the reader; ``source`` is None if the router has no ledger."""
        self._source = source
        self._threads = ThreadPoolExecutor(_THREADS, "ledger-query")

    async def report(self, asked: UsageQuery) -> Report:
        """Query the database.

        Raises:
            Unsupported: The router has no ledger.
            NotReady: The database does not answer.
        """
        if self._source is None:
            raise Unsupported("this router has no ledger: set ledger.directory")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._source.report, asked.query)


class _Pages:
    """Handlers of the routes."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader

    async def usage(self, request: Request) -> Response:
        """Return requests and tokens by bucket, project, model and key (OpenAI)."""
        asked = usage_query(USAGE, request.query_params, time.time())
        found = await self._reader.report(asked)
        return _page(asked, [_usage_result(row) for row in found.rows])

    async def costs(self, request: Request) -> Response:
        """Return costs by day, project, key and line item (OpenAI)."""
        asked = usage_query(COSTS, request.query_params, time.time())
        found = await self._reader.report(asked)
        by_item = LINE_ITEM in asked.groups
        results = [
            _costs_result(row, found.currency, item)
            for row in found.rows
            for item in (_line_items(row) if by_item else [_whole(row)])
        ]
        return _page(asked, results)


@dataclass(frozen=True, slots=True)
class _Item:
    """A line item of costs; ``name`` is None for a whole row."""

    name: str | None
    quantity: int | None
    amount: Decimal | None


def _whole(row: Row) -> _Item:
    return _Item(None, None, None if row.price is None else row.price.total)


def _line_items(row: Row) -> Iterator[_Item]:
    tokens = row.tokens
    for kind, quantity, part in (
        ("input_tokens", tokens.prompt - tokens.cached, "uncached"),
        ("input_cached_tokens", tokens.cached, "cached"),
        ("output_tokens", tokens.output - tokens.reasoning, "output"),
        ("reasoning_tokens", tokens.reasoning, "reasoning"),
    ):
        if quantity:
            amount = None if row.price is None else getattr(row.price, part)
            yield _Item(f"{row.model}, {kind}", quantity, amount)


def _costs_result(row: Row, currency: str, item: _Item) -> tuple[int, dict[str, Any]]:
    amount = None
    if item.amount is not None:
        amount = {"value": item.amount, "currency": currency.lower()}
    return row.start, {
        "object": "organization.costs.result",
        # Null if the tariff has no price for a model in this result.
        "amount": amount,
        "line_item": item.name,
        "project_id": row.tenant,
        "api_key_id": row.key_id,
        "quantity": item.quantity,
        "quantity_unit": None if item.quantity is None else "tokens",
    }


def _usage_result(row: Row) -> tuple[int, dict[str, Any]]:
    tokens = row.tokens
    return row.start, {
        "object": "organization.usage.completions.result",
        "input_tokens": tokens.prompt,
        "output_tokens": tokens.output,
        "input_cached_tokens": tokens.cached,
        "input_uncached_tokens": tokens.prompt - tokens.cached,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": tokens.requests,
        "project_id": row.tenant,
        "user_id": None,
        "api_key_id": row.key_id,
        "model": row.model,
        "batch": row.batch,
    }


def _page(asked: UsageQuery, results: list[tuple[int, dict[str, Any]]]) -> Response:
    buckets: dict[int, list[dict[str, Any]]] = {}
    for start, result in results:
        buckets.setdefault(start, []).append(result)
    query = asked.query
    page = {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": start,
                "end_time": start + query.width,
                "results": buckets.get(start, []),
            }
            for start in range(query.start, query.end, query.width)
        ],
        "has_more": asked.next_page is not None,
        "next_page": asked.next_page,
    }
    return Response(_encoder.encode(page), media_type="application/json")


def add_usage_pages(app: FastAPI, reader: UsageReader) -> None:
    """Add the routes to the router's app."""
    pages = _Pages(reader)
    for path, endpoint in ((USAGE, pages.usage), (COSTS, pages.costs)):
        app.add_api_route(path, endpoint, methods=["GET"])
