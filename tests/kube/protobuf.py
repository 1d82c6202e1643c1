"""Decodes the Protobuf bodies that Helm and kubectl send: release Secrets, deletions, reviews.

Kubernetes' typed Go clients write built-in kinds as ``k8s\\0`` and a ``runtime.Unknown`` (API
concepts, "Kubernetes Protobuf encoding"); responses may be JSON, which they accept too. Field
numbers are those of generated.proto in k8s.io/apimachinery and k8s.io/api.
"""

import base64
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

from tests.kube.errors import ApiError

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"

_TIME = {1: ("seconds", int), 2: ("nanos", int)}
_TEXTS = {1: ("key", str), 2: ("value", str)}
_BYTES = {1: ("key", str), 2: ("value", bytes)}
_OWNER = {
    1: ("kind", str), 3: ("name", str), 4: ("uid", str), 5: ("apiVersion", str),
    6: ("controller", bool), 7: ("blockOwnerDeletion", bool),
}  # fmt: skip
_MANAGED = {
    1: ("manager", str), 2: ("operation", str), 3: ("apiVersion", str), 4: ("time", "time"),
    6: ("fieldsType", str), 7: ("fieldsV1", "fields"), 8: ("subresource", str),
}  # fmt: skip
_METADATA = {
    1: ("name", str), 2: ("generateName", str), 3: ("namespace", str), 4: ("selfLink", str),
    5: ("uid", str), 6: ("resourceVersion", str), 7: ("generation", int),
    8: ("creationTimestamp", "time"), 9: ("deletionTimestamp", "time"),
    10: ("deletionGracePeriodSeconds", int), 11: ("labels", ("map", _TEXTS)),
    12: ("annotations", ("map", _TEXTS)), 13: ("ownerReferences", ("list", _OWNER)),
    14: ("finalizers", ("list", str)), 17: ("managedFields", ("list", _MANAGED)),
}  # fmt: skip
_DELETE = {
    1: ("gracePeriodSeconds", int),
    2: ("preconditions", {1: ("uid", str), 2: ("resourceVersion", str)}),
    3: ("orphanDependents", bool), 4: ("propagationPolicy", str), 5: ("dryRun", ("list", str)),
}  # fmt: skip
_MESSAGES: dict[str, dict[int, tuple[str, Any]]] = {
    "Secret": {
        1: ("metadata", _METADATA), 2: ("data", ("map", _BYTES)), 3: ("type", str),
        4: ("stringData", ("map", _TEXTS)), 5: ("immutable", bool),
    },
    "Namespace": {
        1: ("metadata", _METADATA), 2: ("spec", {1: ("finalizers", ("list", str))}),
        3: ("status", {1: ("phase", str)}),
    },
    "SelfSubjectAccessReview": {
        2: (
            "spec",
            {
                1: (
                    "resourceAttributes",
                    {
                        1: ("namespace", str), 2: ("verb", str), 3: ("group", str),
                        4: ("version", str), 5: ("resource", str), 6: ("subresource", str),
                        7: ("name", str),
                    },
                ),
                2: ("nonResourceAttributes", {1: ("path", str), 2: ("verb", str)}),
            },
        ),
    },
    "Eviction": {1: ("metadata", _METADATA), 2: ("deleteOptions", _DELETE)},
    "DeleteOptions": _DELETE,
}  # fmt: skip


def parsed(body: bytes) -> dict[str, Any]:
    """Decode an object into its JSON form.

    Raises:
        ApiError: 415; the kind is not supported.
    """
    if not body.startswith(_MAGIC):
        raise ApiError(415, "provided data does not have the protobuf magic")
    unknown = dict(_fields(body[len(_MAGIC) :]))
    types = {number: value.decode() for number, value in _fields(unknown[1])}
    message = _MESSAGES.get(types[2])
    if message is None:
        raise ApiError(415, f"this fake does not read {types[2]} as protobuf: see protobuf.py")
    return {"apiVersion": types[1], "kind": types[2], **_message(unknown.get(2, b""), message)}


def _message(raw: bytes, fields: dict[int, tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _fields(raw):
        if number not in fields:
            continue
        name, kind = fields[number]
        match kind:
            case ("map", entry):
                one = _message(value, entry)
                found.setdefault(name, {})[one.get("key", "")] = one.get("value", "")
            case ("list", below):
                found.setdefault(name, []).append(_value(value, below))
            case _:
                found[name] = _value(value, kind)
    # Go writes zero values that JSON leaves out.
    return {name: value for name, value in found.items() if value not in ("", 0, None)}


def _value(raw: Any, kind: Any) -> Any:
    if isinstance(kind, dict):
        return _message(raw, kind)
    if kind == "time":
        seconds = _message(raw, _TIME).get("seconds", 0)
        at = dt.datetime.fromtimestamp(seconds, dt.UTC) if seconds else None
        return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind == "fields":
        return json.loads(dict(_fields(raw)).get(1, b"{}"))
    if kind is bytes:
        return base64.b64encode(raw).decode()
    return raw.decode() if kind is str else kind(raw)


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an int, or bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        if key & 7 == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
        elif key & 7 == 2:
            size, at = _varint(raw, at)
            yield key >> 3, raw[at : at + size]
            at += size
        else:
            raise ApiError(400, f"wire type {key & 7} is not expected here")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
