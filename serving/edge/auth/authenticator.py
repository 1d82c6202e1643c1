"""Authentication and authorization shared by REST and gRPC."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.clock import Clock
from serving.credentials.tokens import bearer_of
from serving.edge.auth.keys import KeyRing
from serving.edge.auth.permissions import (
    ROLES_WITH,
    Permission,
    Role,
    is_preflight,
    route_permission,
)
from serving.errors import InvalidRequest, PermissionDenied, ServingError, Unauthenticated
from serving.request_context import Priority
from serving.telemetry import metrics

API_KEY = "x-api-key"
"""Header in which Anthropic clients send the API key."""
SECRET_HEADERS = frozenset({"authorization", API_KEY})
"""Headers removed from a request after authentication."""
_SECRETS = frozenset(name.encode() for name in SECRET_HEADERS)


@dataclass(frozen=True, slots=True)
class Principal:
    """Tenant, roles and priorities granted by a request's API key."""

    tenant: str = "anonymous"
    roles: frozenset[Role] = frozenset()
    priorities: frozenset[Priority] = frozenset(Priority)

    def has(self, permission: Permission) -> bool:
        """Return whether the permission is public or granted by one of the roles."""
        return permission is Permission.PUBLIC or not self.roles.isdisjoint(ROLES_WITH[permission])


UNAUTHENTICATED = Principal(priorities=frozenset())
"""Principal of a request without a valid key; can use public routes only."""
ALLOW_ALL = Principal(roles=frozenset(Role))
"""Principal of every request to a router without a key file."""

principal_var: ContextVar[Principal] = ContextVar("serving.edge.principal", default=UNAUTHENTICATED)
"""Principal of the request handled in the current context."""


class Authenticator:
    """Validates API keys; without a key ring, every request gets ``ALLOW_ALL``."""

    def __init__(self, keys: Callable[[], KeyRing] | None, clock: Clock) -> None:
        """Create an authenticator.

        Args:
            keys: returns the current key ring; called for each request, since the key file may
                change. None: no key is required.
            clock: time source for checking whether a key has expired.
        """
        self._keys = keys
        self._clock = clock

    def authenticate(self, headers: Mapping[str, str], required: Permission) -> Principal:
        """Return the principal of a request.

        Args:
            headers: REST headers or gRPC metadata; names are lower case unless the mapping is
                case-insensitive.
            required: permission required by the route or RPC.

        Raises:
            Unauthenticated: the key is missing, unknown or expired; the message does not reveal
                which of the latter two.
            PermissionDenied: none of the key's roles grants ``required``.
        """
        if self._keys is None:
            return ALLOW_ALL
        presented = bearer_of(headers) or headers.get(API_KEY)
        key = self._keys().find(presented, self._clock.time()) if presented else None
        if key is None:
            if required is Permission.PUBLIC:
                return UNAUTHENTICATED
            raise Unauthenticated(
                "no valid API key: send it as 'authorization: Bearer KEY'"
                if presented
                else "an API key is needed: send it as 'authorization: Bearer KEY'"
            )
        principal = Principal(key.tenant, key.roles, key.priorities)
        if not principal.has(required):
            raise PermissionDenied(f"this API key may not do that: it takes {required.value}")
        return principal


@contextmanager
def authenticated_as(principal: Principal) -> Iterator[None]:
    """Set ``principal_var`` within the block."""
    token = principal_var.set(principal)
    try:
        yield
    finally:
        principal_var.reset(token)


def authenticate_rest(
    scope: Scope, authenticator: Authenticator, *, open_metrics: bool = False
) -> Principal:
    """Authenticate a request and remove its credentials from ``scope["headers"]``.

    Args:
        scope: ASGI scope of the request.
        authenticator: validates the API key.
        open_metrics: whether /metrics is public.

    Raises:
        Unauthenticated: the route requires a key, but the request has no valid one.
        PermissionDenied: the key's roles do not permit the route.
        InvalidRequest: the request is a WebSocket handshake.
    """
    headers = Headers(scope=scope)
    required = route_permission(scope["path"], open_metrics=open_metrics)
    if is_preflight(scope["method"], frozenset(headers.keys())):
        required = Permission.PUBLIC
    principal = authenticator.authenticate(headers, required)
    if "websocket" in headers.get("upgrade", "").lower():
        raise InvalidRequest("WebSockets are not served here: use HTTP")
    scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in _SECRETS]
    return principal


def count_auth_failure(error: ServingError) -> None:
    """Count ``error`` in ``moe_auth_failures_total`` if it is an authentication failure."""
    if isinstance(error, Unauthenticated):
        metrics.AUTH_FAILURES.labels("rest", "UNAUTHENTICATED").inc()
    elif isinstance(error, PermissionDenied):
        metrics.AUTH_FAILURES.labels("rest", "PERMISSION_DENIED").inc()
