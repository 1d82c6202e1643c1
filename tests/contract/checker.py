"""Compares a JSON value with a recorded schema and returns each difference.

Only differences that affect clients are reported: unknown fields, missing required fields,
values of a different type, unexpected nulls, values that are not in an enumeration.
"""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_WRONG_KIND = 1_000
"""Weight of a difference that shows that the value belongs to another alternative."""


class Checker:
    """Checks values against the schemas of one record."""

    def __init__(self, schemas: dict[str, Schema]) -> None:
        self._schemas = schemas

    def differences(self, value: Any, schema: Schema) -> set[str]:
        """Return the differences, as ``path: what``; items of lists share a path."""
        return {
            f"{path.lstrip('.') or '(all)'}: {what}" for path, what, _ in self._check(value, schema)
        }

    def fields(self, schema: Schema) -> dict[str, Schema]:
        """Return the properties of an object schema, with the parts of ``allOf`` merged."""
        return self._flat(schema)[0]

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"]]
        return schema

    def _flat(self, schema: Schema) -> tuple[dict[str, Schema], set[str]]:
        schema = self._resolved(schema)
        fields, required = dict(schema.get("properties", {})), set(schema.get("required", ()))
        for part in schema.get("allOf", ()):
            more, needed = self._flat(part)
            fields |= more
            required |= needed
        return fields, required

    def _check(self, value: Any, schema: Schema, path: str = "") -> Iterator[tuple[str, str, int]]:
        schema = self._resolved(schema)
        if value is None and schema.get("nullable"):
            return
        alternatives = schema.get("anyOf") or schema.get("oneOf")
        if alternatives:
            alternatives = self._named(value, alternatives) or alternatives
            found = [list(self._check(value, each, path)) for each in alternatives]
            yield from min(found, key=lambda each: sum(weight for *_, weight in each))
            return
        parts = schema.get("allOf", ())
        if len(parts) == 1 and "properties" not in schema:
            yield from self._check(value, parts[0], path)
            return
        if not self._is_type(value, schema):
            yield path, "null" if value is None else f"is {_name(value)}", _WRONG_KIND
            return
        if "const" in schema and value != schema["const"]:
            yield path, f"is {value!r}", _WRONG_KIND
        if "enum" in schema and value not in schema["enum"]:
            yield path, f"is {value!r}", _WRONG_KIND
        if isinstance(value, list) and "items" in schema:
            for item in value:
                yield from self._check(item, schema["items"], f"{path}[]")
        if isinstance(value, dict):
            yield from self._check_object(value, schema, path)

    def _check_object(
        self, value: dict[str, Any], schema: Schema, path: str
    ) -> Iterator[tuple[str, str, int]]:
        fields, required = self._flat(schema)
        others = schema.get("additionalProperties")
        for name in sorted(required - value.keys()):
            yield f"{path}.{name}", "is missing", 10
        for name, item in value.items():
            if name in fields:
                yield from self._check(item, fields[name], f"{path}.{name}")
            elif isinstance(others, dict):
                yield from self._check(item, others, f"{path}.*")
            elif fields and others is not True:
                yield f"{path}.{name}", "is added", 1

    def _named(self, value: Any, alternatives: list[Schema]) -> list[Schema]:
        """Return the alternatives selected by a value's ``type``."""
        kind = value.get("type") if isinstance(value, dict) else None
        if kind is None:
            return []
        return [
            each
            for each in alternatives
            if kind in self._names(self._flat(each)[0].get("type", {}))
        ]

    def _names(self, schema: Schema) -> list[Any]:
        schema = self._resolved(schema)
        return [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]

    def _is_type(self, value: Any, schema: Schema) -> bool:
        kinds = schema.get("type")
        if kinds is None:
            return True
        names = kinds if isinstance(kinds, list) else [kinds]
        if isinstance(value, bool):
            return "boolean" in names
        return isinstance(value, tuple(kind for name in names for kind in _TYPES[name]))


def _name(value: Any) -> str:
    return next(name for name, kinds in _TYPES.items() if type(value) in kinds)
