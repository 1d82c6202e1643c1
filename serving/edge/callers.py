"""From an identity and what a request brings to the ``Caller`` that admission and routing see."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

from serving.edge.auth.authenticator import Identity
from serving.edge.auth.permissions import Role
from serving.errors import InvalidRequest, PermissionDenied
from serving.request_context import Caller, Journal, Priority, caller_var
from serving.routing.decision import Pick

PRIORITY = "x-priority"
SESSION_ID = "x-session-id"
EXPLAIN = "x-explain-routing"

_BY_NAME = {priority.name.lower(): priority for priority in Priority}
# Where the client says nothing: what most mean, else the least that the key allows.
_DEFAULTS = (Priority.STANDARD, Priority.BATCH, Priority.INTERACTIVE)
_VALID_SESSION = re.compile(r"[\x21-\x7e]{1,128}")
_EXPLAINERS = frozenset({Role.EXPLAIN, Role.ADMIN})
_MAX_EXPLANATION = 4096
"""Characters; clients and proxies take headers of about 8 kB in all."""


def caller_of(identity: Identity, headers: Mapping[str, str]) -> Caller:
    """Return who asks and how.

    What is asked for and not allowed is refused, never quietly taken down a notch: a client
    that is configured wrongly should hear of it.

    Raises:
        InvalidRequest: a header is malformed.
        PermissionDenied: the key may not have this priority, or not see explanations.
    """
    return Caller(
        tenant=identity.tenant,
        priority=_priority_of(identity, headers.get(PRIORITY)),
        session_id=_session_of(headers.get(SESSION_ID)),
        roles=frozenset(role.value for role in identity.roles),
        explain=_explain_of(identity, headers.get(EXPLAIN)),
    )


@contextmanager
def as_caller(caller: Caller | None) -> Iterator[None]:
    """Let the requests that start in the block be this caller's; none: nobody's."""
    token = caller_var.set(caller)
    try:
        yield
    finally:
        caller_var.reset(token)


class CallerLine(TypedDict):
    """What the request's log line says of its caller."""

    tenant: str
    priority: str
    waited: float
    resumes: int
    parked: bool | None
    group: str | None
    rank: int | None
    cached_tokens: int | None
    trace_id: str | None


def line_of(caller: Caller) -> CallerLine:
    """Return what a request's log line says of its caller."""
    last = caller.journal.picks[-1] if caller.journal.picks else None
    return {
        "tenant": caller.tenant,
        "priority": caller.priority.name.lower(),
        "waited": caller.journal.waited,
        "resumes": caller.journal.resumes,
        "parked": caller.journal.parked or None,
        "group": last.group_id if last else None,
        "rank": last.rank if last else None,
        "cached_tokens": caller.journal.cached_tokens if last else None,
        "trace_id": caller.journal.trace.trace_id,
    }


def explanation_of(journal: Journal) -> str:
    """Return why each rank was picked, in order, as a JSON list in plain ASCII.

    An explanation that is too long for a header is cut down to its reasons, then to the last.
    """
    full = _json([_explain(pick) for pick in journal.picks])
    if len(full) <= _MAX_EXPLANATION:
        return full
    short = _json([pick.reason for pick in journal.picks])
    return short if len(short) <= _MAX_EXPLANATION else _json([journal.picks[-1].reason[:500]])


def _explain(pick: Pick) -> object:
    explain = getattr(pick, "explain", None)
    return pick.reason if explain is None else explain()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _priority_of(identity: Identity, given: str | None) -> Priority:
    if given is None:
        allowed = (item for item in _DEFAULTS if item in identity.priorities)
        return next(allowed, Priority.STANDARD)
    priority = _BY_NAME.get(given.lower())
    if priority is None:
        raise InvalidRequest(f"{PRIORITY} must be one of {', '.join(_BY_NAME)}")
    if priority not in identity.priorities:
        names = ", ".join(item.name.lower() for item in sorted(identity.priorities))
        raise PermissionDenied(f"this API key may not use {PRIORITY} {given.lower()}, only {names}")
    return priority


def _session_of(given: str | None) -> str | None:
    if given is not None and _VALID_SESSION.fullmatch(given) is None:
        raise InvalidRequest(f"{SESSION_ID} must be 1 to 128 visible ASCII characters")
    return given


def _explain_of(identity: Identity, given: str | None) -> bool:
    if given in {None, "0"}:
        return False
    if given != "1":
        raise InvalidRequest(f"{EXPLAIN} must be 0 or 1")
    if identity.roles.isdisjoint(_EXPLAINERS):
        raise PermissionDenied(f"this API key may not use {EXPLAIN}: it takes role explain")
    return True
