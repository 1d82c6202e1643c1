"""Parses REST headers and RPC metadata, and formats the routing explanation."""

import json
import re
from collections.abc import Mapping
from uuid import uuid4

from serving.edge.auth.authenticator import Principal
from serving.edge.auth.key_file import Role
from serving.errors import InvalidRequest, PermissionDenied
from serving.request_context import Priority, RequestContext, RequestRecord

REQUEST_ID = "x-request-id"
TIMEOUT = "x-request-timeout-ms"
PRIORITY = "x-priority"
SESSION_ID = "x-session-id"
EXPLAIN = "x-explain-routing"
COST = "x-request-cost"
BUDGET_WARNING = "x-budget-warning"
"""Response header, or trailing metadata, about a budget whose soft limit is reached."""

# Visible ASCII: ids become part of headers, log lines and the engine's request id.
_VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TIMEOUT_MS = 24 * 3600 * 1000
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}
_DEFAULT_PRIORITIES = (Priority.STANDARD, Priority.BATCH, Priority.INTERACTIVE)
"""Default priority: the first of these that the key permits."""
_EXPLAIN_ROLES = frozenset({Role.EXPLAIN, Role.ADMIN})
_COST_ROLES = frozenset({Role.COST, Role.ADMIN})
_MAX_EXPLANATION = 4096
"""Maximum length of an explanation, characters. Clients and proxies accept about 8 kB of headers in
total."""


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the client's request id, or a new one.

    Raises:
        InvalidRequest: The id is not 1 to 128 visible ASCII characters.
    """
    given = headers.get(REQUEST_ID)
    if given is None:
        return uuid4().hex
    if _VALID_ID.fullmatch(given) is None:
        raise InvalidRequest(f"{REQUEST_ID} must be 1 to 128 visible ASCII characters")
    return given


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """Return the timeout set by the client in seconds, or None.

    Raises:
        InvalidRequest: The header is not a whole number of milliseconds from 1 ms to one day.
    """
    given = headers.get(TIMEOUT)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(_MAX_TIMEOUT_MS))):
        raise InvalidRequest(f"{TIMEOUT} must be an integer number of milliseconds, got {given!r}")
    milliseconds = int(given)
    if not 1 <= milliseconds <= _MAX_TIMEOUT_MS:
        raise InvalidRequest(
            f"{TIMEOUT} must be between 1 and {_MAX_TIMEOUT_MS}, got {milliseconds}"
        )
    return milliseconds / 1000


def request_context_of(principal: Principal, headers: Mapping[str, str]) -> RequestContext:
    """Return the context of a request, without its deadline.

    A header that requests more than the key permits is rejected, never silently downgraded, so
    that misconfigured clients notice.

    Raises:
        InvalidRequest: A header is malformed.
        PermissionDenied: The key does not permit the priority, explanations or costs.
    """
    return RequestContext(
        tenant=principal.tenant,
        key_id=principal.key_id,
        reasoning=principal.reasoning,
        priority=_priority_of(principal, headers.get(PRIORITY)),
        session_id=_session_of(headers.get(SESSION_ID)),
        roles=frozenset(role.value for role in principal.roles),
        explain=_asks(principal, headers, EXPLAIN, _EXPLAIN_ROLES, "explain"),
        shows_cost=_asks(principal, headers, COST, _COST_ROLES, "cost"),
    )


def explanation_of(record: RequestRecord) -> str:
    """Return the routing decisions of a request, in order, as an ASCII JSON list.

    If too long for a header, the list is reduced to the reasons, then to the last reason.
    """
    full = _json([decision.explain() for decision in record.decisions])
    if len(full) <= _MAX_EXPLANATION:
        return full
    short = _json([decision.reason for decision in record.decisions])
    return short if len(short) <= _MAX_EXPLANATION else _json([record.decisions[-1].reason[:500]])


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _priority_of(principal: Principal, given: str | None) -> Priority:
    if given is None:
        allowed = (item for item in _DEFAULT_PRIORITIES if item in principal.priorities)
        return next(allowed, Priority.STANDARD)
    priority = _PRIORITIES.get(given.lower())
    if priority is None:
        raise InvalidRequest(f"{PRIORITY} must be one of {', '.join(_PRIORITIES)}")
    if priority not in principal.priorities:
        names = ", ".join(item.name.lower() for item in sorted(principal.priorities))
        raise PermissionDenied(f"this API key permits {PRIORITY} {names}, not {given.lower()}")
    return priority


def _session_of(given: str | None) -> str | None:
    if given is not None and _VALID_ID.fullmatch(given) is None:
        raise InvalidRequest(f"{SESSION_ID} must be 1 to 128 visible ASCII characters")
    return given


def _asks(
    principal: Principal,
    headers: Mapping[str, str],
    name: str,
    roles: frozenset[Role],
    role: str,
) -> bool:
    """Return whether a request asks for something that requires a role.

    Raises:
        InvalidRequest: The header is neither 0 nor 1.
        PermissionDenied: The key has none of the roles.
    """
    given = headers.get(name)
    if given in {None, "0"}:
        return False
    if given != "1":
        raise InvalidRequest(f"{name} must be 0 or 1")
    if principal.roles.isdisjoint(roles):
        raise PermissionDenied(f"this API key does not permit {name}: role {role} required")
    return True
