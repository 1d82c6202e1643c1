"""Maps error responses of the API server to the caller's next action.

The action is to retry, to read the object again, to list again, or to fail. The status alone does
not determine it: a JSON patch whose ``test`` fails and a patch that makes the object invalid are
both 422 with reason Invalid; a changed object and a field owned by another manager are both 409
with reason Conflict. Every error contains the server's message.
"""

import http
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from kubernetes.aio.client.exceptions import ApiException

from serving.autoscaler.actuators.actuator import ActuatorError

MOST_BACKOFF = 4.0
"""Maximum backoff, and cap on the server's Retry-After, seconds."""
_EXPIRED = frozenset({"Expired", "Gone"})


class Conflict(ActuatorError):
    """The object has changed since it was read, and must be read again."""


class FieldConflict(ActuatorError):
    """Another field manager owns a changed field; reading the object again does not help."""


class NotFound(ActuatorError):
    """The object, or its kind, does not exist."""


class AccessDenied(ActuatorError):
    """This process is not authenticated (401) or not authorized (403)."""


class Invalid(ActuatorError):
    """The object would be invalid (422), or the request is malformed (400, 415)."""


class Expired(ActuatorError):
    """The server no longer has the changes since the requested version; a new list is needed."""


class _Status(NamedTuple):
    """The relevant part of a ``Status`` object; empty if the body is something else."""

    reason: str
    message: str
    causes: Sequence[str]
    """Reasons of ``details.causes``."""


def raise_if_final(what: str, error: ApiException) -> float:
    """Return the delay before a retry, in seconds, or raise if a retry would not help.

    Args:
        what: The call, for the message.
        error: The client's exception for the response.

    Raises:
        ActuatorError: A retry would not help; the subclass indicates the reason.
    """
    code = int(error.status or 0)
    status = _status(error)
    message = f"Kubernetes: {what}: {code} {status.message or error.reason}"
    if code == http.HTTPStatus.GONE or status.reason in _EXPIRED:
        raise Expired(message) from error
    if code == http.HTTPStatus.CONFLICT:
        if "FieldManagerConflict" in status.causes:
            raise FieldConflict(message) from error
        raise Conflict(message) from error
    if code == http.HTTPStatus.UNPROCESSABLE_ENTITY:
        raise (Conflict if _test_failed(status) else Invalid)(message) from error
    if code == http.HTTPStatus.NOT_FOUND:
        raise NotFound(message) from error
    if code in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        raise AccessDenied(message) from error
    if code in {http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE}:
        raise Invalid(message) from error
    throttled = code == http.HTTPStatus.TOO_MANY_REQUESTS
    if not throttled and 0 < code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ActuatorError(message) from error
    with suppress(ValueError):  # Retry-After can also be a date
        return min(float((error.headers or {}).get("Retry-After", 0)), MOST_BACKOFF)
    return 0.0


def _test_failed(status: _Status) -> bool:
    """Return whether a 422 is a JSON patch that does not apply, rather than an invalid object.

    For a patch that does not apply, the server's message is only "the server rejected our request
    due to an error in our request". For an invalid object, it names the field as a cause.
    """
    return not status.causes and " is invalid" not in status.message


def _status(error: ApiException) -> _Status:
    with suppress(ValueError, TypeError):
        body: Any = json.loads(error.body or "")
        if isinstance(body, Mapping):
            details = body.get("details")
            causes = details.get("causes") if isinstance(details, Mapping) else None
            reasons = [str(cause.get("reason")) for cause in causes or () if cause]
            return _Status(str(body.get("reason", "")), str(body.get("message", "")), reasons)
    return _Status("", "", ())
