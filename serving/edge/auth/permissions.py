"""What each route and each RPC asks of whoever calls it: one table for both protocols.

Whatever is not in the table is for operators alone: a route that somebody adds and forgets
here is closed, not open.
"""

from enum import StrEnum

_PREFLIGHT_HEADERS = ("origin", "access-control-request-method")


class Role(StrEnum):
    """What a key may do."""

    USER = "user"
    """Use the model."""
    METRICS = "metrics"
    """Read /metrics."""
    EXPLAIN = "explain"
    """See why a rank was picked."""
    ADMIN = "admin"
    """Everything, /fleet and FleetService among it."""


class Need(StrEnum):
    """What it takes to call something."""

    NOTHING = "nothing"
    KEY = "a key"
    USER = "role user"
    METRICS = "role metrics"
    ADMIN = "role admin"


# Any one of these roles will do.
ROLES_OF: dict[Need, frozenset[Role]] = {
    Need.NOTHING: frozenset(),
    Need.KEY: frozenset(Role),
    Need.USER: frozenset({Role.USER, Role.ADMIN}),
    Need.METRICS: frozenset({Role.METRICS, Role.ADMIN}),
    Need.ADMIN: frozenset({Role.ADMIN}),
}

METRICS_TARGETS = "/metrics/targets"

ROUTES: dict[str, Need] = {
    "/livez": Need.NOTHING,
    # Says whether, and why only to those who may see /fleet.
    "/readyz": Need.NOTHING,
    "/health": Need.NOTHING,
    "/ping": Need.NOTHING,
    "/metrics": Need.METRICS,
    METRICS_TARGETS: Need.METRICS,
    "/load": Need.METRICS,
    "/fleet": Need.ADMIN,
    "/version": Need.KEY,
    "/openapi.json": Need.KEY,
    "/v1/models": Need.KEY,
    "/tokenize": Need.USER,
    "/detokenize": Need.USER,
    "/invocations": Need.USER,
}
_ROUTE_PREFIXES: dict[str, Need] = {"/v1/models/": Need.KEY, "/v1/": Need.USER}

_RPCS: dict[str, Need] = {"/serving.api.v1.InferenceService/ListModels": Need.KEY}
_SERVICES: dict[str, Need] = {
    "/grpc.health.v1.Health/": Need.NOTHING,
    "/grpc.reflection.v1.ServerReflection/": Need.KEY,
    "/grpc.reflection.v1alpha.ServerReflection/": Need.KEY,
    "/serving.api.v1.InferenceService/": Need.USER,
    "/serving.api.v1.FleetService/": Need.ADMIN,
}


def need_of_route(path: str, *, open_metrics: bool = False) -> Need:
    """Return what a REST path asks for, whatever the method."""
    if open_metrics and path in {"/metrics", METRICS_TARGETS}:
        return Need.NOTHING
    return ROUTES.get(path) or _by_prefix(_ROUTE_PREFIXES, path)


def need_of_rpc(method: str) -> Need:
    """Return what an RPC asks for; ``method`` is its full name, /package.Service/Method."""
    return _RPCS.get(method) or _by_prefix(_SERVICES, method)


def is_preflight(method: str, names: frozenset[str]) -> bool:
    """Tell whether a request is a browser's question before the real one.

    Browsers send those without credentials; they are answered without reaching a route.

    Args:
        method: HTTP method.
        names: the request's header names in lower case.
    """
    return method == "OPTIONS" and names.issuperset(_PREFLIGHT_HEADERS)


def _by_prefix(table: dict[str, Need], name: str) -> Need:
    return next((need for prefix, need in table.items() if name.startswith(prefix)), Need.ADMIN)
