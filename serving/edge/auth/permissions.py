"""The permissions required by REST routes and RPCs.

A route or RPC without an entry requires ADMIN, so newly added routes are closed by default.
"""

from enum import StrEnum

_PREFLIGHT_HEADERS = ("origin", "access-control-request-method")


class Role(StrEnum):
    """Role of an API key."""

    USER = "user"
    """Use the model."""
    METRICS = "metrics"
    """Read /metrics."""
    EXPLAIN = "explain"
    """Read routing explanations (x-explain-routing)."""
    ADMIN = "admin"
    """All routes and RPCs, including /fleet and FleetService."""


class Permission(StrEnum):
    """Permission required by a route or RPC. Values appear in error messages."""

    PUBLIC = "nothing"
    ANY_KEY = "a key"
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
    # The public response is only the boolean; the reasons require ADMIN.
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
    "/tokenize": Permission.USER,
    "/detokenize": Permission.USER,
    "/invocations": Permission.USER,
}
_ROUTE_PREFIXES: dict[str, Permission] = {
    "/v1/models/": Permission.ANY_KEY,
    "/v1/": Permission.USER,
}

_RPCS: dict[str, Permission] = {"/serving.api.v1.InferenceService/ListModels": Permission.ANY_KEY}
_SERVICES: dict[str, Permission] = {
    "/grpc.health.v1.Health/": Permission.PUBLIC,
    "/grpc.reflection.v1.ServerReflection/": Permission.ANY_KEY,
    "/grpc.reflection.v1alpha.ServerReflection/": Permission.ANY_KEY,
    "/serving.api.v1.InferenceService/": Permission.USER,
    "/serving.api.v1.FleetService/": Permission.ADMIN,
}


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
        names: the request's header names in lower case.
    """
    return method == "OPTIONS" and names.issuperset(_PREFLIGHT_HEADERS)


def _by_prefix(table: dict[str, Permission], name: str) -> Permission:
    return next(
        (permission for prefix, permission in table.items() if name.startswith(prefix)),
        Permission.ADMIN,
    )
