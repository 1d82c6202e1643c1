"""Error bodies of /v1/messages in Anthropic's format.

``{"type": "error", "error": {"type", "message"}, "request_id"}``, with Anthropic's error types
(docs.anthropic.com, API errors) and the router's ``reason``, ``retry_after`` and ``renews_at``.
Anthropic clients read the request id from the header ``request-id`` instead of ``x-request-id``.
"""

import json
from collections.abc import Iterable
from typing import Any

PATH = "/v1/messages"
REQUEST_ID = b"request-id"
_VERSION = b"anthropic-version"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_CLIENT_ERRORS = range(400, 500)
_KEPT = ("message", "param", "reason", "retry_after", "renews_at")


def error_type(status: int) -> str:
    """Return Anthropic's error type for an HTTP status."""
    default = "invalid_request_error" if status in _CLIENT_ERRORS else "api_error"
    return _TYPES.get(status, default)


def is_messages(path: str) -> bool:
    """Return whether a path belongs to the messages API."""
    return path == PATH or path.startswith(f"{PATH}/")


def reads_request_id(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether the client reads the request id from the header ``request-id``.

    Anthropic's SDKs send the API version with every request, including those to /v1/models.
    """
    return is_messages(path) or any(name.lower() == _VERSION for name, _ in headers)


def body_of(status: int, error: dict[str, Any], request_id: str | None) -> dict[str, Any]:
    """Return Anthropic's body for an error object in OpenAI's or Anthropic's format."""
    kept = {name: error[name] for name in _KEPT if error.get(name) is not None}
    body: dict[str, Any] = {
        "type": "error",
        "error": {"type": error_type(status), "message": "", **kept},
    }
    return body if request_id is None else {**body, "request_id": request_id}


def rewritten(status: int, body: bytes, request_id: str | None) -> bytes:
    """Convert a JSON error body to Anthropic's format; return other bodies unchanged."""
    try:
        content = json.loads(body)
        error = content["error"]
    except (ValueError, TypeError, KeyError):
        return body
    if not isinstance(error, dict):
        return body
    return json.dumps(body_of(status, error, request_id)).encode()
