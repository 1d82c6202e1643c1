"""Errors in OpenAI's JSON shape, for REST answers, for streams and for the gRPC edge.

``{"error": {"message", "type", "param", "code", "reason"}}``: ``code`` is the HTTP status as
in vLLM, ``reason`` is ours, stable and meant for programs; ``retry_after`` (seconds) is there
when it is known.
"""

import json
import traceback
from http import HTTPStatus
from typing import Any

from fastapi.dependencies.utils import request_body_to_args
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

from serving.errors import ERROR_TABLE, ServingError, status_of

RETRY_AFTER_SECONDS = 1
"""What retryable errors advise that do not know better; short, since a lost group's work resumes
within seconds."""

_UNREADABLE = "the request has a field of a wrong type that could not be made out more exactly"
_LONE_SURROGATE = (
    "a text of the request has half a surrogate pair (\\ud800 to \\udfff in JSON), which is no "
    "character: send the whole pair, or U+FFFD in its place"
)
INTERNAL_MESSAGE = "internal error; the router's log has it under this request's x-request-id"

# vLLM reports what is wrong with a request through these; any other exception is a fault of
# ours or the engine's, and its text may name internals.
_REQUEST_ERRORS = (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError)

_LOOKUPS = (LookupError, AttributeError)
_READERS = ("vllm.entrypoints.chat_utils", "vllm.entrypoints.openai.responses.utils")
"""Modules of vLLM that only read a request."""

_TYPES: dict[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    499: "ClientClosedRequest",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "DeadlineExceededError",
}

# vLLM's own errors have an HTTP status and no reason of ours.
_REASONS: dict[int, str] = {
    400: "INVALID_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "MODEL_NOT_FOUND",
    413: "INVALID_REQUEST",
    415: "INVALID_REQUEST",
    422: "INVALID_REQUEST",
    429: "OVERLOADED",
    499: "CANCELLED",
    501: "UNSUPPORTED",
    503: "NOT_READY",
    504: "DEADLINE_EXCEEDED",
}

_STATUSES: dict[str, int] = {status.reason: status.http for status in ERROR_TABLE.values()}
_DATA = b"data: "


def error_response(
    message: str,
    *,
    status: int,
    reason: str,
    param: str | None = None,
    retry_after: float | None = None,
) -> ErrorResponse:
    """Build the body for a status and a reason of ``serving.errors.ERROR_TABLE``."""
    return ErrorResponse(
        error=ErrorInfo.model_validate(
            {
                "message": message,
                "type": _TYPES.get(status, "InternalServerError"),
                "param": param,
                "code": status,
                "reason": reason,
                **({} if retry_after is None else {"retry_after": retry_after}),
            }
        )
    )


def response_of(error: BaseException) -> ErrorResponse:
    """Turn any exception into a body; text of unknown exceptions stays inside."""
    if isinstance(error, ServingError):
        status = status_of(error)
        message = str(error) or type(error).__name__
        # To the millisecond: a program reads it, and so may a person.
        known = getattr(error, "retry_after", None)
        retry_after = None if known is None else round(max(known, 0.001), 3)
        return error_response(
            message, status=status.http, reason=status.reason, retry_after=retry_after
        )
    if _is_about_surrogates(error):
        return error_response(_LONE_SURROGATE, status=400, reason="INVALID_REQUEST")
    if _is_in_reading(error):
        return error_response(_UNREADABLE, status=400, reason="INVALID_REQUEST")
    # jinja2 is imported by name only in vLLM too: a template that refuses the messages.
    is_template = any(cls.__name__ == "TemplateError" for cls in type(error).__mro__)
    if isinstance(error, _REQUEST_ERRORS) or is_template:
        assert isinstance(error, Exception)
        return create_error_response(error)
    return error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL")


def _is_about_surrogates(error: BaseException) -> bool:
    """Tell whether a text could not be encoded; tokenizers say it in their own way."""
    tokenizers_words = isinstance(error, TypeError) and "TextEncodeInput" in str(error)
    return isinstance(error, UnicodeEncodeError) or tokenizers_words


def _is_in_reading(error: BaseException) -> bool:
    """Tell whether the error arose while a body was made into a request, before any work.

    vLLM's validators look into fields before pydantic has checked their types, so that a text
    in place of an object ends in an ``AttributeError``; and what makes a conversation of the
    items of a response takes the first part of one that may have none.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is request_body_to_args.__code__:
            return True
        if isinstance(error, _LOOKUPS) and frame.f_globals.get("__name__") in _READERS:
            return True
    return False


def response_to(
    message: str | Exception,
    err_type: str = "BadRequestError",
    status_code: HTTPStatus = HTTPStatus.BAD_REQUEST,
    param: str | None = None,
) -> ErrorResponse:
    """Stand in for vLLM's ``create_error_response``: the same, and it knows our errors."""
    if isinstance(message, Exception):
        return response_of(message)
    return create_error_response(message, err_type, status_code, param)


def event_response(event: bytes) -> tuple[ErrorResponse, dict[str, Any] | None]:
    """Read an error event of any of vLLM's protocols.

    Returns:
        The error, and the body that it makes as a whole answer; none: OpenAI's.
    """
    try:
        data = json.loads(event[event.index(_DATA) + len(_DATA) :])
        whole = isinstance(data.get("error"), dict)
        error = data["error"] if whole else data
        code = error.get("code")
        # Responses events have the reason as their code, Anthropic's have no code.
        numeric = isinstance(code, int)
        reason = error.get("reason") or (reason_of_status(code) if numeric else code)
        response = error_response(
            str(error["message"]),
            status=code if numeric else _STATUSES.get(str(reason), 500),
            reason=str(reason or "INTERNAL"),
            param=error.get("param"),
            retry_after=error.get("retry_after"),
        )
        if numeric and error.get("type"):
            response.error.type = error["type"]
    except (ValueError, AttributeError, KeyError):
        return error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL"), None
    return response, data if whole else None


def reason_of(error: ErrorInfo) -> str:
    """Return an error's reason: the one it carries, else what its status stands for."""
    return getattr(error, "reason", None) or reason_of_status(error.code)


def retry_after_of(error: ErrorInfo) -> float:
    """Return the seconds after which the client may try again."""
    return _seconds(getattr(error, "retry_after", None))


def retry_after_in(body: bytes) -> float:
    """Return the same for a JSON error body of any of vLLM's protocols."""
    try:
        return _seconds(json.loads(body)["error"]["retry_after"])
    except (ValueError, TypeError, KeyError):
        return _seconds(None)


def _seconds(known: Any) -> float:
    return float(known if isinstance(known, int | float) else RETRY_AFTER_SECONDS)


def reason_of_status(status: int) -> str:
    """Return the reason that an HTTP status stands for."""
    return _REASONS.get(status, "INTERNAL")


def content_of(response: ErrorResponse) -> dict[str, Any]:
    """Return the JSON content of an error body."""
    content: dict[str, Any] = response.model_dump()
    return content


def is_retryable(status: int) -> bool:
    """Tell whether an HTTP status invites the client to come back later."""
    return status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
