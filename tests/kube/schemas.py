"""Schemas as an API server uses them: types of fields, how they merge, and their valid values.

The topology of a field (``x-kubernetes-list-type``, ``-map-type``, ``-list-map-keys``) determines
its ownership in server-side apply; the patch strategy decides how Helm 3's strategic merge
patches merge it. Both are described in Kubernetes' API concepts and read from the schemas alone.
"""

import re
from functools import cached_property
from typing import Any

_REF = "#/$defs/"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}
_BOUNDS = {
    "enum", "format", "maximum", "maxItems", "maxLength", "minimum", "minItems", "minLength",
    "pattern",
}  # fmt: skip
_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Schema:
    """A node of a schema; methods return None for unknown parts."""

    def __init__(self, raw: dict[str, Any], definitions: dict[str, Any], over: Any = None):
        name = raw.get("$ref", "").removeprefix(_REF)
        target = definitions[name] if name else raw
        # Keys next to a reference belong to the field: patch strategy, list type.
        self.raw: dict[str, Any] = {**target, **raw, **(over or {})} if name else raw
        self.name = name
        self._definitions = definitions
        self._children: dict[str, Schema | None] = {}

    def _made(self, key: str, raw: Any) -> "Schema | None":
        if key not in self._children:
            known = isinstance(raw, dict) and bool(raw)
            self._children[key] = Schema(raw, self._definitions) if known else None
        return self._children[key]

    @cached_property
    def free(self) -> bool:
        """Whether the contents are unknown."""
        return self.name == _QUANTITY or bool(
            self.raw.get("x-kubernetes-preserve-unknown-fields")
            or self.raw.get("x-kubernetes-embedded-resource")
        )

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The named fields of a struct; empty for a map."""
        found: dict[str, Any] = self.raw.get("properties") or {}
        return found

    @cached_property
    def closed(self) -> bool:
        """Whether fields other than the named ones are unknown fields."""
        return bool(self.fields) and not self.free and not self.raw.get("additionalProperties")

    def at(self, key: str) -> "Schema | None":
        """Return the schema of a field of a struct or of a value in a map."""
        if key in self.fields:
            return self._made(f".{key}", self.fields[key])
        return self._made("*", self.raw.get("additionalProperties"))

    @property
    def items(self) -> "Schema | None":
        """The schema of a list's items."""
        return self._made("[]", self.raw.get("items"))

    @cached_property
    def atomic(self) -> bool:
        """Whether it is atomic: owned as a whole under server-side apply."""
        if self.is_list:
            return self.raw.get("x-kubernetes-list-type", "atomic") == "atomic"
        return self.raw.get("x-kubernetes-map-type") == "atomic"

    @cached_property
    def is_list(self) -> bool:
        return "array" in self.types

    @property
    def is_set(self) -> bool:
        return self.raw.get("x-kubernetes-list-type") == "set"

    @property
    def keys(self) -> list[str]:
        """The fields that identify the items of an associative list."""
        found: list[str] = self.raw.get("x-kubernetes-list-map-keys") or []
        return found

    @property
    def merge_key(self) -> str:
        """The field that identifies items in a strategic merge patch; empty: none."""
        return str(self.raw.get("x-kubernetes-patch-merge-key", ""))

    @property
    def strategies(self) -> list[str]:
        """Strategies of strategic merge patch: "merge", "replace", "retainKeys"."""
        return [*str(self.raw.get("x-kubernetes-patch-strategy", "")).split(",")]

    @cached_property
    def types(self) -> list[str]:
        found = self.raw.get("type", [])
        return [found] if isinstance(found, str) else [*found]

    @cached_property
    def value_types(self) -> list[str]:
        """The types of a value that is not null."""
        return [name for name in self.types if name != "null"]

    @cached_property
    def bounded(self) -> bool:
        """Whether values of the right type may be invalid."""
        return not _BOUNDS.isdisjoint(self.raw)

    @cached_property
    def nullable(self) -> bool:
        return "null" in self.types or bool(self.raw.get("nullable"))

    def key_default(self, key: str) -> Any:
        """Return the default of an item's missing key: ``protocol`` is TCP."""
        item = self.items
        found = None if item is None else (item.fields.get(key) or {}).get("default")
        return "TCP" if found is None and key == "protocol" else found


def unknown_fields(value: Any, schema: Schema | None, path: str = "") -> list[str]:
    """Return the paths of fields that are not in the schema (``spec.rplicas``)."""
    if schema is None or schema.free:
        return []
    if isinstance(value, list):
        return [
            found
            for number, item in enumerate(value)
            for found in unknown_fields(item, schema.items, f"{path}[{number}]")
        ]
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        at = f"{path}.{key}" if path else key
        if schema.closed and key not in schema.fields:
            found.append(at)
        else:
            found += unknown_fields(inner, schema.at(key), at)
    return found


def pruned(value: Any, schema: Schema | None) -> Any:
    """Return ``value`` without fields that are not in the schema."""
    if schema is None or schema.free:
        return value
    if isinstance(value, list):
        return [pruned(item, schema.items) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: pruned(inner, schema.at(key))
        for key, inner in value.items()
        if not schema.closed or key in schema.fields
    }


def without_nulls(value: Any, schema: Schema | None, *, custom: bool) -> Any:
    """Return ``value`` without null fields: Go has no null, CRDs drop it unless nullable."""
    if isinstance(value, list):
        items = None if schema is None else schema.items
        return [without_nulls(item, items, custom=custom) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, inner in value.items():
        below = None if schema is None else schema.at(key)
        known = below is not None and not below.free
        if inner is None and known and not (custom and below.nullable):
            continue
        found[key] = without_nulls(inner, below, custom=custom)
    return found


def defaulted(value: Any, schema: Schema | None) -> Any:
    """Return ``value`` with the defaults of the schema (of CRDs)."""
    if schema is None:
        return value
    if isinstance(value, list):
        return [defaulted(item, schema.items) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: defaulted(inner, schema.at(key)) for key, inner in value.items()}
    for key, raw in schema.fields.items():
        if key not in found and isinstance(raw, dict) and "default" in raw:
            found[key] = defaulted(raw["default"], schema.at(key))
    return found


def problems(value: Any, schema: Schema | None, path: str = "") -> list[tuple[str, str, str]]:
    """Return the problems of ``value`` as (reason, path, message) of field errors."""
    if schema is None or schema.name == _QUANTITY or value is None:
        return []
    if schema.raw.get("x-kubernetes-int-or-string") or schema.name == _INT_OR_STRING:
        return [] if isinstance(value, (int, str)) else [_wrong_type(path, value, "int-or-string")]
    wanted = schema.value_types
    if wanted and not any(_is(value, name) for name in wanted):
        return [_wrong_type(path, value, wanted[0])]
    found = _bounds(value, schema, path) if schema.bounded else []
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += problems(item, schema.items, f"{path}[{number}]")
    elif isinstance(value, dict):
        found += [
            ("FieldValueRequired", f"{path}.{key}".lstrip("."), "Required value")
            for key in schema.raw.get("required", ())
            if value.get(key) is None
        ]
        for key, inner in value.items():
            found += problems(inner, schema.at(key), f"{path}.{key}".lstrip("."))
    return found


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _bounds(value: Any, schema: Schema, path: str) -> list[tuple[str, str, str]]:
    raw, found = schema.raw, []
    allowed = raw.get("enum")
    if allowed is not None and value not in allowed:
        listed = ", ".join(f'"{one}"' for one in allowed)
        sentence = f'Unsupported value: "{value}": supported values: {listed}'
        found.append(("FieldValueNotSupported", path, sentence))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and "minimum" in raw and value < raw["minimum"]:
        body = f"{path} in body should be greater than or equal to {raw['minimum']}"
        found.append(("FieldValueInvalid", path, f"Invalid value: {value}: {body}"))
    if number and "maximum" in raw and value > raw["maximum"]:
        body = f"{path} in body should be less than or equal to {raw['maximum']}"
        found.append(("FieldValueInvalid", path, f"Invalid value: {value}: {body}"))
    if isinstance(value, str) and "pattern" in raw and not re.search(raw["pattern"], value):
        body = f"{path} in body should match '{raw['pattern']}'"
        found.append(("FieldValueInvalid", path, f'Invalid value: "{value}": {body}'))
    if isinstance(value, str) and raw.get("format") == "date-time" and not _TIME.fullmatch(value):
        body = f"{path} in body must be of type date-time"
        found.append(("FieldValueInvalid", path, f'Invalid value: "{value}": {body}'))
    for word, few in (
        ("minLength", True),
        ("minItems", True),
        ("maxLength", False),
        ("maxItems", False),
    ):
        if word in raw and isinstance(value, (str, list)):
            if isinstance(value, str) != word.endswith("Length"):
                continue
            if (len(value) < raw[word]) if few else (len(value) > raw[word]):
                body = f"{path} in body should have {'at least' if few else 'at most'} {raw[word]}"
                found.append(("FieldValueInvalid", path, f'Invalid value: "{value}": {body}'))
    return found


def _wrong_type(path: str, value: Any, wanted: str) -> tuple[str, str, str]:
    is_now = _NAMES.get(type(value), "null")
    shown = f'"{value}"' if isinstance(value, str) else is_now
    sentence = f'Invalid value: {shown}: {path} in body must be of type {wanted}: "{is_now}"'
    return ("FieldValueTypeInvalid", path, sentence)
