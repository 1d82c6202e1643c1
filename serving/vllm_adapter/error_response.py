"""Errors in OpenAI's JSON format, for REST responses, streams and the gRPC edge.

``{"error": {"message", "type", "param", "code", "reason"}}``. ``code`` is the HTTP status, as in
vLLM. ``reason`` is an addition: a stable identifier for programs. ``retry_after`` (seconds) is
present if known, ``renews_at`` (RFC 3339) if a budget is used up.
"""

import json
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

from serving.clock import rfc3339
from serving.errors import ERROR_TABLE, BudgetExceeded, ServingError, status_of

FAILED = "moe_serving_failed"
"""Attribute of ``request.state`` that holds an error's reason for the request's log line."""
RETRY_AFTER_SECONDS = 1
"""Default ``retry_after`` of retryable errors; short because requests of a lost group resume within
seconds."""

UNREADABLE = "a field of the request has the wrong type"
_LONE_SURROGATE = (
    "a string in the request contains an unpaired surrogate (\\ud800 to \\udfff in JSON): "
    "send the whole pair, or replace it with U+FFFD"
)
INTERNAL_MESSAGE = "internal error; see the router's log for this request's x-request-id"

# vLLM reports invalid requests with these. Any other exception is a bug in the router or the
# engine, and its text may reveal internals.
_REQUEST_ERRORS = (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError)

_TYPES: dict[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "PaymentRequiredError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    499: "ClientClosedRequest",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "DeadlineExceededError",
    507: "InsufficientStorageError",
}

# Reasons for vLLM's errors, which have only an HTTP status.
_REASONS: dict[int, str] = {
    400: "INVALID_REQUEST",
    401: "UNAUTHENTICATED",
    402: "BUDGET_EXCEEDED",
    403: "PERMISSION_DENIED",
    404: "MODEL_NOT_FOUND",
    409: "CONFLICT",
    413: "INVALID_REQUEST",
    415: "INVALID_REQUEST",
    422: "INVALID_REQUEST",
    429: "OVERLOADED",
    499: "CANCELLED",
    501: "UNSUPPORTED",
    503: "NOT_READY",
    504: "DEADLINE_EXCEEDED",
    507: "STORAGE_FULL",
}

_STATUSES: dict[str, int] = {status.reason: status.http for status in ERROR_TABLE.values()}
_DATA = b"data: "
_RETRYABLE = frozenset(
    {HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
)


def error_response(
    message: str,
    *,
    status: int,
    reason: str,
    param: str | None = None,
    retry_after: float | None = None,
    renews_at: str | None = None,
) -> ErrorResponse:
    """Build an error body; ``reason`` is from ``serving.errors.ERROR_TABLE``."""
    return ErrorResponse(
        error=ErrorInfo.model_validate(
            {
                "message": message,
                "type": _TYPES.get(status, "InternalServerError"),
                "param": param,
                "code": status,
                "reason": reason,
                **({} if retry_after is None else {"retry_after": retry_after}),
                **({} if renews_at is None else {"renews_at": renews_at}),
            }
        )
    )


def response_of(error: BaseException) -> ErrorResponse:
    """Convert any exception to an error body; hides the text of unknown exceptions."""
    if isinstance(error, ServingError):
        status = status_of(error)
        message = str(error) or type(error).__name__
        # Rounded to milliseconds for readability; never 0.
        known = getattr(error, "retry_after", None)
        retry_after = None if known is None else round(max(known, 0.001), 3)
        renewal = error.renews_at if isinstance(error, BudgetExceeded) else None
        return error_response(
            message,
            status=status.http,
            reason=status.reason,
            retry_after=retry_after,
            renews_at=None if renewal is None else rfc3339(renewal),
        )
    if _is_about_surrogates(error):
        return error_response(_LONE_SURROGATE, status=400, reason="INVALID_REQUEST")
    # A chat template rejected the messages. Matched by name, as in vLLM, to avoid importing jinja2.
    is_template = any(cls.__name__ == "TemplateError" for cls in type(error).__mro__)
    if isinstance(error, _REQUEST_ERRORS) or is_template:
        assert isinstance(error, Exception)
        return create_error_response(error)
    return error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL")


def _is_about_surrogates(error: BaseException) -> bool:
    """Return whether text could not be encoded; tokenizers raise a TypeError for it."""
    tokenizers_words = isinstance(error, TypeError) and "TextEncodeInput" in str(error)
    return isinstance(error, UnicodeEncodeError) or tokenizers_words


def response_to(
    message: str | Exception,
    err_type: str = "BadRequestError",
    status_code: HTTPStatus = HTTPStatus.BAD_REQUEST,
    param: str | None = None,
) -> ErrorResponse:
    """Replace vLLM's ``create_error_response``; also handles ``serving.errors``."""
    if isinstance(message, Exception):
        return response_of(message)
    return create_error_response(message, err_type, status_code, param)


class RouterErrors:
    """Mixin that builds error bodies for the errors of ``serving.errors``."""

    create_error_response = staticmethod(response_to)


def retry_fields(error: ErrorInfo) -> dict[str, Any]:
    """Return ``retry_after`` and ``renews_at`` of an error, if it has them."""
    known = {name: getattr(error, name, None) for name in ("retry_after", "renews_at")}
    return {name: value for name, value in known.items() if value is not None}


def event_response(event: bytes) -> tuple[ErrorResponse, dict[str, Any] | None]:
    """Parse an error event of any of vLLM's protocols.

    Returns:
        The error, and the event's JSON if it can be the body of a non-streamed error. If it cannot,
        the second value is None and the body must have OpenAI's format.
    """
    try:
        data = json.loads(event[event.index(_DATA) + len(_DATA) :])
        whole = isinstance(data.get("error"), dict)
        error = data["error"] if whole else data
        code = error.get("code")
        # In events of /v1/responses the code is the reason; Anthropic's events have no code.
        numeric = isinstance(code, int)
        reason = error.get("reason") or (reason_of_status(code) if numeric else code)
        response = error_response(
            str(error["message"]),
            status=code if numeric else _STATUSES.get(str(reason), 500),
            reason=str(reason or "INTERNAL"),
            param=error.get("param"),
            retry_after=error.get("retry_after"),
            renews_at=error.get("renews_at"),
        )
        if numeric and error.get("type"):
            response.error.type = error["type"]
    except (ValueError, AttributeError, KeyError):
        return error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL"), None
    return response, data if whole else None


def reason_of(error: ErrorInfo) -> str:
    """Return an error's ``reason``, or the default for its status."""
    return getattr(error, "reason", None) or reason_of_status(error.code)


def retry_after_of(error: ErrorInfo) -> float:
    """Return the time after which the client may retry, seconds."""
    return _seconds(getattr(error, "retry_after", None))


def retry_after_in(body: bytes, status: int) -> float | None:
    """Return ``retry_after`` of a JSON error body of any of vLLM's protocols, seconds.

    None if a budget is used up and the body does not state when it renews.
    """
    try:
        return _seconds(json.loads(body)["error"]["retry_after"])
    except (ValueError, TypeError, KeyError):
        return None if status == HTTPStatus.PAYMENT_REQUIRED else _seconds(None)


def _seconds(known: Any) -> float:
    return float(known if isinstance(known, int | float) else RETRY_AFTER_SECONDS)


def reason_of_status(status: int) -> str:
    """Return the default reason for an HTTP status."""
    return _REASONS.get(status, "INTERNAL")


def content_of(response: ErrorResponse) -> dict[str, Any]:
    """Return the JSON content of an error body."""
    content: dict[str, Any] = response.model_dump()
    return content


def is_retryable(status: int) -> bool:
    """Return whether an HTTP status means that the client may retry later, with Retry-After."""
    return status in _RETRYABLE
