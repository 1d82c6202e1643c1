"""Errors as gRPC statuses with google.rpc details, from the same table as REST.

Every error carries ErrorInfo (a stable reason, domain "moe-serving"); a known field adds
BadRequest, a retryable error RetryInfo.
"""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.edge.grpc.fields import BadField, field_of
from serving.errors import ERROR_TABLE, ErrorStatus
from serving.vllm_adapter.error_response import reason_of, response_of, retry_after_of

DOMAIN = "moe-serving"

_BY_REASON: dict[str, ErrorStatus] = {status.reason: status for status in ERROR_TABLE.values()}


_MOST_LETTERS = 1000
"""Of a message; it goes out twice, once with three bytes for each space."""


class RpcError(Exception):
    """Ends a call with a gRPC status."""

    def __init__(self, status: status_pb2.Status, reason: str) -> None:
        super().__init__(status.message)
        self.status = status
        self.reason = reason

    @property
    def code(self) -> grpc.StatusCode:
        """The status code as grpc has it."""
        return grpc.StatusCode[code_pb2.Code.Name(self.status.code)]

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata that carries the details."""
        return tuple(rpc_status.to_status(self.status).trailing_metadata or ())


def rpc_error(error: BaseException | ErrorResponse) -> RpcError:
    """Turn an exception, or an error body of vLLM's handlers, into a gRPC status."""
    if isinstance(error, RpcError):
        return error
    field = error.field if isinstance(error, BadField) else ""
    problem = error.problem if isinstance(error, BadField) else ""
    body = (error if isinstance(error, ErrorResponse) else response_of(error)).error
    if not field and body.param:
        field, problem = field_of(body.param), body.message
    entry = _BY_REASON.get(reason_of(body), _BY_REASON["INTERNAL"])
    details: list[any_pb2.Any] = []
    for detail in (
        error_details_pb2.ErrorInfo(reason=entry.reason, domain=DOMAIN),
        _bad_request(field, problem),
        _retry_info(retry_after_of(body)) if entry.retryable else None,
    ):
        if detail is not None:
            packed = any_pb2.Any()
            packed.Pack(detail)
            details.append(packed)
    status = status_pb2.Status(
        code=code_pb2.Code.Value(entry.grpc), message=_short(body.message), details=details
    )
    return RpcError(status, entry.reason)


def _bad_request(field: str, problem: str) -> error_details_pb2.BadRequest | None:
    if not field:
        return None
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=field[:_MOST_LETTERS], description=_short(problem)
    )
    return error_details_pb2.BadRequest(field_violations=[violation])


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _short(text: str) -> str:
    """Cut a text that clients would not take: many allow 8 KB for all metadata of an answer."""
    if len(text) <= _MOST_LETTERS:
        return text
    return f"{text[:_MOST_LETTERS]}... ({len(text) - _MOST_LETTERS} more letters)"
