"""The discovery endpoints: version, groups and kinds, and the parameters of writes.

Groups and kinds are served in the older, not aggregated form, which every client falls back to.
The OpenAPI documents have no schemas: kubectl and Helm look in them for the ``fieldValidation``
parameter of PATCH, and leave the checking to the server when it is there.
"""

from typing import Any

from tests.kube.faults import Seen
from tests.kube.kinds import VERSION, Kind, Kinds

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def page(kinds: Kinds, seen: Seen) -> dict[str, Any] | None:
    """Return the response of a discovery path; None for any other path."""
    if seen.method != "GET":
        return None
    parts = seen.path.strip("/").split("/")
    match parts:
        case ["version"]:
            return _version()
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            return _groups(kinds)
        case ["api", version]:
            return _resources(kinds, "", version)
        case ["apis", group, version]:
            return _resources(kinds, group, version)
        case ["openapi", "v2"]:
            return {"swagger": "2.0", "paths": _paths(kinds), "definitions": {}}
        case ["openapi", "v3"]:
            versions = sorted({_address(kind) for kind in kinds})
            paths = {at: {"serverRelativeURL": f"/openapi/v3/{at}"} for at in versions}
            return {"paths": paths}
        case ["openapi", "v3", *rest]:
            wanted = "/".join(rest)
            return {
                "openapi": "3.0.0",
                "info": {"title": "Kubernetes", "version": VERSION},
                "paths": _paths([kind for kind in kinds if _address(kind) == wanted]),
            }
    return None


def _version() -> dict[str, Any]:
    major, minor = VERSION.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"v{VERSION}.2",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-11-01T00:00:00Z",
        "goVersion": "go1.25",
        "compiler": "gc",
        "platform": "linux/amd64",
    }


def _groups(kinds: Kinds) -> dict[str, Any]:
    versions: dict[str, list[str]] = {}
    for kind in kinds:
        if kind.group and kind.version not in versions.setdefault(kind.group, []):
            versions[kind.group].append(kind.version)
    groups = [
        {
            "name": group,
            "versions": [{"groupVersion": f"{group}/{one}", "version": one} for one in found],
            "preferredVersion": {"groupVersion": f"{group}/{found[0]}", "version": found[0]},
        }
        for group, found in versions.items()
    ]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(kinds: Kinds, group: str, version: str) -> dict[str, Any] | None:
    found = [kind for kind in kinds if (kind.group, kind.version) == (group, version)]
    if not found:
        return None
    resources = []
    for kind in found:
        one = {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": _VERBS,
        }
        resources.append(one)
        resources += [
            one | {"name": f"{kind.plural}/{below}", "verbs": ["get", "patch", "update"]}
            for below in kind.subresources
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": found[0].api_version,
        "resources": resources,
    }


def _address(kind: Kind) -> str:
    return f"apis/{kind.group}/{kind.version}" if kind.group else f"api/{kind.version}"


def _paths(kinds: Any) -> dict[str, Any]:
    found = {}
    for kind in kinds:
        space = "/namespaces/{namespace}" if kind.namespaced else ""
        parameters = [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in ("dryRun", "fieldManager", "fieldValidation", "force")
        ]
        version = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        found[f"/{_address(kind)}{space}/{kind.plural}/{{name}}"] = {
            "patch": {
                "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": version,
            }
        }
    return found
