"""Error bodies of /v1/messages in Anthropic's shape, wherever in the router they arise.

``{"type": "error", "error": {"type", "message"}, "request_id"}``, with Anthropic's own error types
(docs.anthropic.com, API errors); ``reason`` and ``retry_after`` of ours stay beside them. Clients
of that API read the request id from the header ``request-id``, not from ``x-request-id``.
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
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_CLIENT_ERRORS = range(400, 500)
_KEPT = ("message", "param", "reason", "retry_after")


def error_type(status: int) -> str:
    """Return the name that Anthropic's API gives to an HTTP status."""
    default = "invalid_request_error" if status in _CLIENT_ERRORS else "api_error"
    return _TYPES.get(status, default)


def is_messages(path: str) -> bool:
    """Tell whether a path belongs to the messages API."""
    return path == PATH or path.startswith(f"{PATH}/")


def reads_request_id(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request comes from a client that reads ``request-id``.

    Its SDKs send their version with every request, for models too.
    """
    return is_messages(path) or any(name.lower() == _VERSION for name, _ in headers)


def body_of(status: int, error: dict[str, Any], request_id: str | None) -> dict[str, Any]:
    """Return the body for an error in OpenAI's or already in Anthropic's shape."""
    kept = {name: error[name] for name in _KEPT if error.get(name) is not None}
    body: dict[str, Any] = {
        "type": "error",
        "error": {"type": error_type(status), "message": "", **kept},
    }
    return body if request_id is None else {**body, "request_id": request_id}


def rewritten(status: int, body: bytes, request_id: str | None) -> bytes:
    """Return a JSON error body in Anthropic's shape; what is no error body stays as it is."""
    try:
        content = json.loads(body)
        error = content["error"]
    except (ValueError, TypeError, KeyError):
        return body
    if not isinstance(error, dict):
        return body
    return json.dumps(body_of(status, error, request_id)).encode()
