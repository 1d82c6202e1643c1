"""Errors as gRPC statuses with google.rpc details, from the same table as REST.

Every status carries ErrorInfo (a stable reason, domain "moe-serving"; for budgets, ``renews_at`` in
its metadata). Errors about a known field also carry BadRequest, and retryable errors RetryInfo.
"""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.api.v1 import inference_pb2 as pb
from serving.errors import ERROR_TABLE, ErrorStatus, InvalidRequest
from serving.vllm_adapter.error_response import reason_of, response_of, retry_after_of

DOMAIN = "moe-serving"

_BY_REASON: dict[str, ErrorStatus] = {status.reason: status for status in ERROR_TABLE.values()}

_MAX_MESSAGE = 1000
"""Maximum length of an error message, characters. It is sent twice, once percent-encoded with three
bytes per space."""

_FIELDS = {field.name: f"sampling.{field.name}" for field in pb.SamplingParams.DESCRIPTOR.fields}
_FIELDS |= {
    "max_completion_tokens": "sampling.max_tokens",
    "include_stop_str_in_output": "sampling.include_stop_in_output",
    "structured_outputs": "response_format",
    "input_tokens": "messages",
    "prompt": "text",
    "tokens": "token_ids",
    "return_token_strs": "return_token_strings",
    "chat_template_kwargs": "chat_template_kwargs_json",
}
"""Proto paths of vLLM's parameters; most parameters of sampling have their field's name."""


class BadField(InvalidRequest):
    """A field of the request is invalid; ``field`` is its proto path."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def field_of(parameter: str) -> str:
    """Return the proto path of a (dotted) vLLM parameter; unknown ones keep their name."""
    head, dot, rest = parameter.partition(".")
    return _FIELDS.get(head, head) + dot + rest


class RpcError(Exception):
    """Ends a call with a gRPC status."""

    def __init__(self, status: status_pb2.Status, reason: str) -> None:
        super().__init__(status.message)
        self.status = status
        self.reason = reason

    @property
    def code(self) -> grpc.StatusCode:
        """The status code as a grpcio enum."""
        return grpc.StatusCode[code_pb2.Code.Name(self.status.code)]

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata that carries the status details."""
        return tuple(rpc_status.to_status(self.status).trailing_metadata or ())


def rpc_error(error: BaseException | ErrorResponse) -> RpcError:
    """Convert an exception, or an error body of a vLLM handler, to a gRPC status."""
    if isinstance(error, RpcError):
        return error
    field = error.field if isinstance(error, BadField) else ""
    problem = error.problem if isinstance(error, BadField) else ""
    body = (error if isinstance(error, ErrorResponse) else response_of(error)).error
    if not field and body.param:
        field, problem = field_of(body.param), body.message
    entry = _BY_REASON.get(reason_of(body), _BY_REASON["INTERNAL"])
    renews_at = getattr(body, "renews_at", None)
    details: list[any_pb2.Any] = []
    for detail in (
        error_details_pb2.ErrorInfo(
            reason=entry.reason,
            domain=DOMAIN,
            metadata=None if renews_at is None else {"renews_at": renews_at},
        ),
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
        field=field[:_MAX_MESSAGE], description=_short(problem)
    )
    return error_details_pb2.BadRequest(field_violations=[violation])


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _short(text: str) -> str:
    """Truncate a text, because many clients accept at most 8 KB of response metadata."""
    if len(text) <= _MAX_MESSAGE:
        return text
    return f"{text[:_MAX_MESSAGE]}... ({len(text) - _MAX_MESSAGE} more characters)"
