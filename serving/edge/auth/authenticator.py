"""Authentication and authorization shared by REST and gRPC.

A route or RPC without an entry in the tables requires ADMIN, so newly added routes are closed by
default.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.clock import Clock
from serving.credentials.tokens import bearer_of
from serving.edge.auth.key_file import Role
from serving.edge.auth.keys import KeyRing
from serving.errors import InvalidRequest, PermissionDenied, ServingError, Unauthenticated
from serving.request_context import Priority, ReasoningPolicy
from serving.telemetry import metrics

API_KEY = "x-api-key"
"""Header in which Anthropic clients send the API key."""
SECRET_HEADERS = frozenset({"authorization", API_KEY})
"""Headers removed from a request after authentication."""
_SECRETS = frozenset(name.encode() for name in SECRET_HEADERS)
_PREFLIGHT_HEADERS = ("origin", "access-control-request-method")


class Permission(StrEnum):
    """Permission required by a route or RPC. Values appear in error messages."""

    PUBLIC = "no key"
    ANY_KEY = "an API key"
    USER = "role user"
    METRICS = "role metrics"
    ADMIN = "role admin"


ROLES_WITH: dict[Permission, frozenset[Role]] = {
    Permission.PUBLIC: frozenset(),
    Permission.ANY_KEY: frozenset(Role),
    Permission.USER: frozenset({Role.USER, Role.ADMIN}),
    Permission.METRICS: frozenset({Role.METRICS, Role.ADMIN}),
    Permission.ADMIN: frozenset({Role.ADMIN}),
}
"""Roles that grant each permission; one of them is sufficient."""

METRICS_TARGETS = "/metrics/targets"

ROUTES: dict[str, Permission] = {
    "/livez": Permission.PUBLIC,
    # The public response contains only the boolean; the reasons require ADMIN.
    "/readyz": Permission.PUBLIC,
    "/health": Permission.PUBLIC,
    "/ping": Permission.PUBLIC,
    "/metrics": Permission.METRICS,
    METRICS_TARGETS: Permission.METRICS,
    "/load": Permission.METRICS,
    "/fleet": Permission.ADMIN,
    "/version": Permission.ANY_KEY,
    "/openapi.json": Permission.ANY_KEY,
    "/v1/models": Permission.ANY_KEY,
    "/v1/load_lora_adapter": Permission.ADMIN,
    "/v1/unload_lora_adapter": Permission.ADMIN,
    "/tokenize": Permission.USER,
    "/detokenize": Permission.USER,
    "/invocations": Permission.USER,
    # The console's page contains no data; its handlers check the permissions of the key.
    "/console": Permission.PUBLIC,
    "/console/api/cancel": Permission.USER,
    "/console/api/groups": Permission.ADMIN,
    "/console/api/autoscaler": Permission.ADMIN,
}
_ROUTE_PREFIXES: dict[str, Permission] = {
    "/v1/models/": Permission.ANY_KEY,
    "/v1/organization/": Permission.ADMIN,
    "/v1/": Permission.USER,
    "/console/api/": Permission.ANY_KEY,
    "/console/": Permission.PUBLIC,
}

_RPCS: dict[str, Permission] = {"/serving.api.v1.InferenceService/ListModels": Permission.ANY_KEY}
_SERVICES: dict[str, Permission] = {
    "/grpc.health.v1.Health/": Permission.PUBLIC,
    "/grpc.reflection.v1.ServerReflection/": Permission.ANY_KEY,
    "/grpc.reflection.v1alpha.ServerReflection/": Permission.ANY_KEY,
    "/serving.api.v1.InferenceService/": Permission.USER,
    "/serving.api.v1.FleetService/": Permission.ADMIN,
    "/serving.api.v1.UsageService/": Permission.ADMIN,
    "/serving.api.v1.BatchService/": Permission.USER,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Tenant, roles and priorities granted by a request's API key."""

    tenant: str = "anonymous"
    roles: frozenset[Role] = frozenset()
    priorities: frozenset[Priority] = frozenset(Priority)
    key_id: str | None = None
    """Id of the key in the key file. None if no key is required."""
    reasoning: ReasoningPolicy | None = None
    """Defaults and caps for reasoning. None means unrestricted."""

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
            keys: Returns the current key ring; called for each request, because the key file can
                change. If None, no key is required.
            clock: Time source for checking whether a key has expired.
        """
        self._keys = keys
        self._clock = clock

    def authenticate(self, headers: Mapping[str, str], required: Permission) -> Principal:
        """Return the principal of a request.

        Args:
            headers: REST headers or gRPC metadata; names are lower case unless the mapping is
                case-insensitive.
            required: Permission required by the route or RPC.

        Raises:
            Unauthenticated: The key is missing, unknown or expired; the message does not
                distinguish the latter two.
            PermissionDenied: None of the key's roles grants ``required``.
        """
        if self._keys is None:
            return ALLOW_ALL
        presented = bearer_of(headers) or headers.get(API_KEY)
        key = self._keys().find(presented, self._clock.time()) if presented else None
        if key is None:
            if required is Permission.PUBLIC:
                return UNAUTHENTICATED
            raise Unauthenticated(
                "invalid API key: send a valid key as 'authorization: Bearer KEY'"
                if presented
                else "API key required: send it as 'authorization: Bearer KEY'"
            )
        principal = Principal(key.tenant, key.roles, key.priorities, key.id, key.reasoning)
        if not principal.has(required):
            raise PermissionDenied(
                f"this API key does not permit this operation: {required.value} required"
            )
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
        authenticator: Validates the API key.
        open_metrics: Whether /metrics is public.

    Raises:
        Unauthenticated: The route requires a key, but the request has no valid one.
        PermissionDenied: The key's roles do not permit the route.
        InvalidRequest: The request is a WebSocket handshake.
    """
    headers = Headers(scope=scope)
    required = route_permission(scope["path"], open_metrics=open_metrics)
    if is_preflight(scope["method"], frozenset(headers.keys())):
        required = Permission.PUBLIC
    principal = authenticator.authenticate(headers, required)
    if "websocket" in headers.get("upgrade", "").lower():
        raise InvalidRequest("WebSockets are not supported: use HTTP")
    scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in _SECRETS]
    return principal


def route_permission(path: str, *, open_metrics: bool = False) -> Permission:
    """Return the permission that a REST path requires, for all methods."""
    if open_metrics and path in {"/metrics", METRICS_TARGETS}:
        return Permission.PUBLIC
    return ROUTES.get(path) or _by_prefix(_ROUTE_PREFIXES, path)


def rpc_permission(method: str) -> Permission:
    """Return the permission that an RPC requires; ``method`` is /package.Service/Method."""
    return _RPCS.get(method) or _by_prefix(_SERVICES, method)


def is_preflight(method: str, names: frozenset[str]) -> bool:
    """Return whether a request is a CORS preflight.

    Browsers send preflights without credentials. The CORS middleware answers them, so they never
    reach a route.

    Args:
        method: HTTP method.
        names: The request's header names in lower case.
    """
    return method == "OPTIONS" and names.issuperset(_PREFLIGHT_HEADERS)


def _by_prefix(table: dict[str, Permission], name: str) -> Permission:
    return next(
        (permission for prefix, permission in table.items() if name.startswith(prefix)),
        Permission.ADMIN,
    )


def count_auth_failure(error: ServingError) -> None:
    """Count ``error`` in ``moe_auth_failures_total`` if it is an authentication failure."""
    if isinstance(error, Unauthenticated):
        metrics.AUTH_FAILURES.labels("rest", "UNAUTHENTICATED").inc()
    elif isinstance(error, PermissionDenied):
        metrics.AUTH_FAILURES.labels("rest", "PERMISSION_DENIED").inc()
