"""Which answers to a fuzzed request are bugs.

Every request is answered within ``PATIENCE``, with a client error (4xx) or with success. The
following are not bugs: 503 NOT_READY (no group was ready, which the tests rule out separately), 501
UNSUPPORTED (the documented answer for features that this model or build does not support), and 504
for a case that sets a deadline.
"""

import json
from typing import Any

import grpc

_ALLOWED_OVER_500 = {(501, "UNSUPPORTED")}


def rest_problem(status: int, body: bytes, *, has_deadline: bool) -> str | None:
    """Return the error in a REST response, or None."""
    allowed = _ALLOWED_OVER_500 | ({(504, "DEADLINE_EXCEEDED")} if has_deadline else set())
    if status >= 500:
        reason = _reason(body)
        return None if (status, reason) in allowed else f"status {status} ({reason}) {body!r:.300}"
    for line in body.splitlines():
        error = _error_in(line)
        if error is None:
            continue
        code, reason = error.get("code"), error.get("reason")
        if reason in {"INTERNAL", "ENGINE", "GROUP_LOST"} or (
            isinstance(code, int) and code >= 500 and (code, reason) not in allowed
        ):
            return f"error event {line!r:.300}"
    return None


def grpc_problem(code: grpc.StatusCode, details: str) -> str | None:
    """Return the error in the status of a call, or None."""
    if code in {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
    }:
        return None
    return f"{code.name}: {details:.300}"


_ANTHROPIC = {"NotImplementedError": "UNSUPPORTED", "DeadlineExceededError": "DEADLINE_EXCEEDED"}


def _reason(body: bytes) -> str | None:
    try:
        error: Any = json.loads(body)["error"]
        if error["type"] == "api_error" and "not supported" in error["message"]:
            return "UNSUPPORTED"  # Anthropic's errors have no reason
        return error.get("reason") or _ANTHROPIC.get(error["type"])
    except (ValueError, KeyError, TypeError):
        return None


def _error_in(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"data: {"):
        return None
    try:
        data = json.loads(line[len(b"data: ") :])
    except ValueError:
        return {"reason": "INTERNAL"}
    if data.get("type") == "error" and "code" in data:
        return {"reason": data["code"]}
    error = data.get("error")
    return error if isinstance(error, dict) else None
