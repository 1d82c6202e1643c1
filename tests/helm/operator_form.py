"""The spec of a RayService after the KubeRay operator's update of the whole object.

The API server fills in the CRD's defaults; the operator reads the object into Go types and writes
it back. This module does the same with tables: the CRD's schema and ``recorded/go-types.json.gz``.
"""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

from tests.helm.quantities import canonical

_HERE = Path(__file__).parent
_ABSENT = object()


def operator_form(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a RayService's ``spec`` as the API server stores it after the operator's update.

    Raises:
        AssertionError: A field is unknown to the operator's types, or has another type.
    """
    done = _written(_defaulted(spec, _schema()), "RayServiceSpec", "spec")
    assert isinstance(done, dict)
    return done


def differences(ours: Any, theirs: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the differences between two trees by path; a number and its text differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = {}
        for key in ours.keys() | theirs.keys():
            found |= differences(
                ours.get(key, "absent"), theirs.get(key, "absent"), f"{path}.{key}"
            )
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        found = {}
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            found |= differences(one, other, f"{path}[{index}]")
        return found
    same = ours == theirs and isinstance(ours, type(theirs))
    return {} if same else {path: (ours, theirs)}


@functools.cache
def _types() -> dict[str, dict[str, dict[str, str]]]:
    loaded: dict[str, dict[str, dict[str, str]]] = json.loads(
        gzip.decompress((_HERE / "recorded" / "go-types.json.gz").read_bytes())
    )
    return loaded


@functools.cache
def _schema() -> dict[str, Any]:
    resource = json.loads(gzip.decompress((_HERE / "crds" / "rayservices.json.gz").read_bytes()))
    schema: dict[str, Any] = resource["schema"]["properties"]["spec"]
    return schema


def _defaulted(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    known = {key: _defaulted(item, fields.get(key, {})) for key, item in value.items()}
    added = {key: item["default"] for key, item in fields.items() if "default" in item}
    return added | known


def _written(value: Any, kind: str, path: str) -> Any:
    """Return ``value`` as Go's encoder writes a field of type ``kind``."""
    if kind.startswith("*"):
        return None if value is None else _written(value, kind[1:], path)
    if kind.startswith("[]"):
        if value is None:
            return None
        assert isinstance(value, list), path
        return [_written(item, kind[2:], f"{path}[{i}]") for i, item in enumerate(value)]
    if kind.startswith("map "):
        if value is None:
            return None
        assert isinstance(value, dict), path
        return {key: _written(item, kind[4:], f"{path}.{key}") for key, item in value.items()}
    return _scalar(value, kind, path) if kind in _SCALARS else _object(value, kind, path)


_SCALARS = {
    "string": (str,),
    "bool": (bool,),
    "int": (int,),
    "quantity": (str, int, float),
    "intOrString": (str, int),
    "time": (str,),
}


def _scalar(value: Any, kind: str, path: str) -> Any:
    assert value is None or isinstance(value, _SCALARS[kind]), f"{path}: {value!r} for a {kind}"
    assert kind == "bool" or not isinstance(value, bool), f"{path}: {value!r} for a {kind}"
    if kind == "quantity":
        return canonical(str(value))
    return {"string": "", "bool": False, "int": 0}.get(kind) if value is None else value


def _object(value: Any, kind: str, path: str) -> dict[str, Any]:
    fields = _types()[kind]
    assert isinstance(value, dict), f"{path}: {value!r} for a {kind}"
    unknown = value.keys() - fields.keys()
    assert not unknown, f"{path} ({kind}) has no {', '.join(sorted(unknown))}"
    result = {}
    for key, field in fields.items():
        given = value.get(key, _ABSENT)
        written = _field(given, field, f"{path}.{key}")
        if written is not _ABSENT:
            result[key] = written
    return result


def _field(given: Any, field: dict[str, str], path: str) -> Any:
    kind, omit = field["type"], field.get("omit")
    struct = kind in _types()
    if given is _ABSENT or given is None:
        given = {} if struct else None
    if kind == "time" and given is None:
        assert omit, path
        return _ABSENT
    written = _written(given, kind, path)
    if omit == "omitzero" and written == {}:
        return _ABSENT
    # Go's omitempty does not omit empty structs or pointers to empty values.
    if omit and not struct and (written is None or (not kind.startswith("*") and not written)):
        return _ABSENT
    return written
