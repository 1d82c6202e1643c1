"""What the API server's refusals mean for a caller: again, read first, list first, or give up.

The status alone does not say it. A JSON patch whose ``test`` does not hold and a patch that makes
the object invalid are both 422 with reason Invalid; a changed object and a field that another
manager owns are both 409 with reason Conflict. Every error carries the server's own sentence.
"""

import http
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from kubernetes.aio.client.exceptions import ApiException

from serving.autoscaler.actuators.actuator import ActuatorError

MOST_BACKOFF = 4.0
"""Seconds; also the most that the server's Retry-After is followed."""
_EXPIRED = frozenset({"Expired", "Gone"})


class Conflict(ActuatorError):
    """Somebody else changed the object in between: read it again."""


class OwnedByOther(ActuatorError):
    """Another field manager owns what an apply would change: reading again is no help."""


class NotThere(ActuatorError):
    """There is no such object, or no such kind of object."""


class Refused(ActuatorError):
    """The server does not know us (401), or we may not do that (403)."""


class Invalid(ActuatorError):
    """The change would make the object invalid (422), or the server cannot read it (400, 415)."""


class Expired(ActuatorError):
    """The server no longer has the changes since that version: list again."""


class _Status(NamedTuple):
    """What matters of a ``Status`` object; empty where the body is something else."""

    reason: str
    message: str
    causes: Sequence[str]
    """Reasons of ``details.causes``."""


def check_final(what: str, error: ApiException) -> float:
    """Return for how long to wait before another try, in seconds.

    Args:
        what: the call, for the message.
        error: what the client raised for the answer.

    Raises:
        ActuatorError: another try would not help; the subclass says why.
    """
    code = int(error.status or 0)
    status = _status(error)
    told = f"Kubernetes: {what}: {code} {status.message or error.reason}"
    if code == http.HTTPStatus.GONE or status.reason in _EXPIRED:
        raise Expired(told) from error
    if code == http.HTTPStatus.CONFLICT:
        if "FieldManagerConflict" in status.causes:
            raise OwnedByOther(told) from error
        raise Conflict(told) from error
    if code == http.HTTPStatus.UNPROCESSABLE_ENTITY:
        raise (Conflict if _test_failed(status) else Invalid)(told) from error
    if code == http.HTTPStatus.NOT_FOUND:
        raise NotThere(told) from error
    if code in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        raise Refused(told) from error
    if code in {http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE}:
        raise Invalid(told) from error
    throttled = code == http.HTTPStatus.TOO_MANY_REQUESTS
    if not throttled and 0 < code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ActuatorError(told) from error
    with suppress(ValueError):  # it may be a date
        return min(float((error.headers or {}).get("Retry-After", 0)), MOST_BACKOFF)
    return 0.0


def _test_failed(status: _Status) -> bool:
    """Return whether a 422 is a JSON patch that did not fit the object, not an invalid result.

    Of a patch that it cannot apply the server only says "the server rejected our request due to an
    error in our request"; of an invalid object it names the field as a cause.
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
