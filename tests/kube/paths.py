"""Parses a request's path: its token and its object.

Follows "API URL paths and terminology" of Kubernetes' API concepts. ``/as/TOKEN`` before a path is
how the fake gets the token of clients that send none over plain HTTP.
"""

from aiohttp import web

from tests.kube.errors import no_such_path
from tests.kube.kinds import Kind, Kinds


def resource_at(kinds: Kinds, path: str) -> tuple[Kind, str, str, str]:
    """Return kind, namespace, name and subresource of a path; raise 404 for other paths."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise no_such_path()
    namespace = ""
    inside = rest[0] == "namespaces" and len(rest) >= 3
    if inside and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced):
        raise no_such_path()
    if kind.namespaced and not namespace and len(rest) > 1:
        raise no_such_path()
    if kind.plural == "namespaces" and len(rest) > 1:
        namespace = rest[1]  # for RBAC, a namespace lies in itself
    return kind, namespace, *[*rest[1:], "", ""][:2]


def addressed(request: web.BaseRequest) -> tuple[str | None, str]:
    """Return the bearer token of a request and its path: ``/as/TOKEN/api/...`` contains both."""
    word, _, token = request.headers.get("Authorization", "").partition(" ")
    parts = request.path.split("/", 3)
    if parts[1:2] == ["as"] and len(parts) == 4:
        return parts[2], f"/{parts[3]}"
    return (token if word == "Bearer" else None), request.path
