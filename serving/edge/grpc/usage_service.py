"""UsageService: the ledger over gRPC, with the parameters and limits of the REST routes."""

import time
from collections.abc import Iterator
from typing import Any

import structlog
from starlette.datastructures import QueryParams

from serving.api.v1 import usage_pb2 as pb
from serving.api.v1 import usage_pb2_grpc
from serving.edge.grpc.errors import rpc_error
from serving.edge.usage_pages import UsageReader
from serving.edge.usage_query import USAGE, UsageQuery, usage_query
from serving.errors import ServingError
from serving.ledger.report import Report, Row
from serving.ledger.tariff import Amounts

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.edge")


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Serves ``serving.api.v1.UsageService``, even while the router drains."""

    def __init__(self, reader: UsageReader) -> None:
        """Create the service; ``reader`` queries the ledger."""
        self._reader = reader

    async def GetUsage(  # noqa: N802
        self, request: pb.GetUsageRequest, context: Any
    ) -> pb.GetUsageResponse:
        """Return requests, tokens and prices by bucket."""
        try:
            asked = usage_query(USAGE, QueryParams(list(_params(request))), time.time())
            return _response(asked, await self._reader.report(asked))
        except Exception as error:
            failure = rpc_error(error)
            if not isinstance(error, ServingError):
                log.exception("unhandled exception")
            await context.abort(failure.code, failure.status.message, failure.trailers)
            raise AssertionError("abort did not raise") from error


def _params(request: pb.GetUsageRequest) -> Iterator[tuple[str, str]]:
    """Yield the fields that are set, as parameters of the REST route, which have the same names."""
    for field, value in request.ListFields():
        for each in value if field.is_repeated else (value,):
            yield field.name, str(each)


def _response(asked: UsageQuery, found: Report) -> pb.GetUsageResponse:
    results: dict[int, list[pb.UsageResult]] = {}
    for row in found.rows:
        results.setdefault(row.start, []).append(_result(row))
    query = asked.query
    return pb.GetUsageResponse(
        buckets=[
            pb.UsageBucket(
                start_time=start, end_time=start + query.width, results=results.get(start, ())
            )
            for start in range(query.start, query.end, query.width)
        ],
        next_page=asked.next_page or "",
        currency=found.currency,
    )


def _result(row: Row) -> pb.UsageResult:
    tokens = row.tokens
    return pb.UsageResult(
        project_id=row.tenant,
        model=row.model,
        api_key_id=row.key_id,
        num_model_requests=tokens.requests,
        input_tokens=tokens.prompt,
        input_cached_tokens=tokens.cached,
        output_tokens=tokens.output,
        reasoning_tokens=tokens.reasoning,
        batch=row.batch,
        price=_text(row.price),
        list_price=_text(row.list_price),
    )


def _text(amounts: Amounts | None) -> str:
    return "" if amounts is None else f"{amounts.total.normalize():f}"
