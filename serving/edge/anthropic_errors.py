"""Error bodies of /v1/messages in Anthropic's shape, wherever in the router they arise.

``{"type": "error", "error": {"type", "message"}}``, with Anthropic's own error types
(docs.anthropic.com, API errors); ``reason`` and ``retry_after`` of ours stay beside them.
"""

import json
from typing import Any

PATH = "/v1/messages"

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


def body_of(status: int, error: dict[str, Any]) -> dict[str, Any]:
    """Return the body for an error in OpenAI's or already in Anthropic's shape."""
    kept = {name: error[name] for name in _KEPT if error.get(name) is not None}
    return {"type": "error", "error": {"type": error_type(status), "message": "", **kept}}


def rewritten(status: int, body: bytes) -> bytes:
    """Return a JSON error body in Anthropic's shape; what is no error body stays as it is."""
    try:
        content = json.loads(body)
        error = content["error"]
    except (ValueError, TypeError, KeyError):
        return body
    return json.dumps(body_of(status, error)).encode() if isinstance(error, dict) else body
