"""Label and field selectors, as in Kubernetes' "Labels and Selectors" and "Field Selectors"."""

import re
from collections.abc import Callable
from typing import Any

from tests.kube.errors import bad_request

Test = Callable[[dict[str, Any]], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"^(?P<op>!?)\s*(?P<key>[^\s!=,()]+)$")
_COMMAS = re.compile(r",(?![^(]*\))")

_FIELDS = {
    "pods": {
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
        "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName",
    },
    "nodes": {"spec.unschedulable"},
    "secrets": {"type"},
    "namespaces": {"status.phase"},
    "jobs": {"status.successful"},
    "events": {
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name",
        "involvedObject.uid", "reason", "type",
    },
}  # fmt: skip
"""Selectable fields of a kind, in addition to metadata.name and metadata.namespace."""


def label_test(text: str) -> Test:
    """Return whether an object matches the label selector ``text``.

    Raises:
        ApiError: 400; invalid selector.
    """
    tests = [_label_part(part.strip()) for part in _COMMAS.split(text) if part.strip()]
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in tests)


def _label_part(part: str) -> Test:
    if match := _SET.match(part):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(part):
        key, value = match["key"], match["value"]
        if match["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(part):
        key, absent = match["key"], bool(match["op"])
        return lambda labels: (key in labels) != absent
    raise bad_request(f'unable to parse requirement: found "{part}"')


def field_test(text: str, plural: str) -> Test:
    """Return whether an object matches the field selector ``text`` (``spec.nodeName=n1``).

    Raises:
        ApiError: 400; the field is not selectable for this kind.
    """
    known = {"metadata.name", "metadata.namespace"} | _FIELDS.get(plural, set())
    tests = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _EQUAL.match(part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        if match["key"] not in known:
            raise bad_request(f"field label not supported: {match['key']}")
        tests.append((match["key"].split("."), match["op"] == "!=", match["value"]))
    return lambda item: all((_field(item, path) == value) != no for path, no, value in tests)


def _field(item: Any, path: list[str]) -> str:
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    if isinstance(item, bool):
        return str(item).lower()
    return "" if item is None else str(item)
