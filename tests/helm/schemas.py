"""Schemas of Kubernetes and of custom resources, with unknown fields rejected."""

import functools
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema_rs

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")

_CRDS = Path(__file__).parent / "crds"


def problems(item: dict[str, Any], version: str) -> list[str]:
    """Return the errors of ``item`` for Kubernetes ``version``, or for its CRD."""
    kind = (item["apiVersion"], item["kind"])
    checker = _custom().get(kind) or _built_in(version, *kind)
    return [f"{error.instance_path}: {error.message}" for error in checker.iter_errors(item)]


@functools.cache
def _custom() -> dict[tuple[str, str], Any]:
    found = {}
    for file in sorted(_CRDS.glob("*.json.gz")):
        resource = json.loads(gzip.decompress(file.read_bytes()))
        schema = closed(resource["schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[resource["apiVersion"], resource["kind"]] = jsonschema_rs.Draft202012Validator(schema)
    return found


def closed(schema: Any) -> Any:
    """Return ``schema`` with unknown fields rejected, as by an API server."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        result.setdefault("additionalProperties", open_ended)
    return result


@functools.cache
def _definitions(version: str) -> tuple[dict[tuple[str, str], str], Any]:
    """Return the definition's name of each kind, and a registry of all definitions."""
    package = importlib.util.find_spec("kubernetes_validate")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text("utf-8"))
    names = {}
    for name, schema in definitions["$defs"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            group = f"{kind['group']}/" if kind["group"] else ""
            names[f"{group}{kind['version']}", kind["kind"]] = name
    return names, jsonschema_rs.Registry([(_ADDRESS, definitions)])


_ADDRESS = "json-schema:///api/_definitions.json"


@functools.cache
def _built_in(version: str, api_version: str, kind: str) -> Any:
    names, registry = _definitions(version)
    schema = {"$ref": f"{_ADDRESS}#/$defs/{names[api_version, kind]}"}
    return jsonschema_rs.Draft202012Validator(schema, registry=registry)
