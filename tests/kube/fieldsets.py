"""Field sets and their differences between objects, as in sigs.k8s.io/structured-merge-diff.

A path is a tuple of elements as FieldsV1 writes them: ``f:spec``, ``k:{"name":"a"}`` (an item of an
associative list), ``v:"a"`` (an item of a set). Atomic lists and maps have no fields inside. The
walks follow that library's ToFieldSet, Compare and Merge; their results are compared with
the recorded managed fields of RayServices.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kube.copies import copied
from tests.kube.schemas import Schema

Path = tuple[str, ...]
Fields = set[Path]


class Duplicate(ValueError):
    """Two items of an associative list have the same keys; the message has the path."""


def encoded(fields: Fields) -> dict[str, Any]:
    """Return a field set as FieldsV1."""
    root: dict[str, Any] = {}
    prefixes = {path[:n] for path in fields for n in range(1, len(path))}
    for path in sorted(fields):
        at = root
        for element in path:
            at = at.setdefault(element, {})
        if path in prefixes:
            at["."] = {}
    return root


def decoded(raw: dict[str, Any], prefix: Path = ()) -> Fields:
    """Return the field set of a FieldsV1."""
    found: Fields = set()
    for element, below in raw.items():
        path = (*prefix, element)
        if element == ".":
            found.add(prefix)
        elif below:
            found |= decoded(below, path)
        else:
            found.add(path)
    return found


def spoken(path: Path) -> str:
    """Return a path as it appears in messages: ``.spec.containers[name="a"].image``."""
    text = ""
    for element in path:
        kind, rest = element[:1], element[2:]
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            pairs = json.loads(rest).items()
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in pairs) + "]"
        else:
            text += f"[={rest}]" if kind == "v" else f"[{rest}]"
    return text


def element_of(item: Any, schema: Schema) -> str:
    """Return the path element of an item of an associative list or of a set."""
    if schema.is_set or not isinstance(item, dict):
        return "v:" + json.dumps(item, separators=(",", ":"))
    keys = {key: item.get(key, schema.key_default(key)) for key in sorted(schema.keys)}
    keys = {key: value for key, value in keys.items() if value is not None}
    return "k:" + json.dumps(keys, separators=(",", ":"))


def _items(value: Any, schema: Schema, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in value or ():
        element = element_of(item, schema)
        if element in found:
            raise Duplicate(f"{spoken(path)}: duplicate entries for key {spoken((element,))}")
        found[element] = item
    return found


def _leaf(value: Any, schema: Schema | None) -> bool:
    """Return whether a value has no fields inside."""
    if not isinstance(value, (dict, list)):
        return True
    if isinstance(value, list):
        return schema is None or not schema.is_list or schema.atomic
    return schema is not None and schema.atomic


def fields_of(value: Any, schema: Schema | None, path: Path = ()) -> Fields:
    """Return the fields that an applied object names.

    Raises:
        Duplicate: An associative list contains an item twice.
    """
    if _leaf(value, schema):
        return {path}
    found: Fields = set()
    if isinstance(value, list):
        assert schema is not None
        for element, item in _items(value, schema, path).items():
            found |= fields_of(item, schema.items, (*path, element)) | {(*path, element)}
        return found
    named = {} if schema is None else schema.fields
    for key, inner in value.items():
        at = (*path, f"f:{key}")
        below = None if schema is None else schema.at(key)
        if inner is None or inner == {}:
            found.add(at)
            continue
        found |= fields_of(inner, below, at)
        if key not in named:
            found.add(at)  # a map's item is a member itself, a struct's field is not
    return found


@dataclass
class Difference:
    """The fields that differ between two objects."""

    added: Fields = field(default_factory=set)
    modified: Fields = field(default_factory=set)
    removed: Fields = field(default_factory=set)


_ABSENT = object()


def compared(old: Any, new: Any, schema: Schema | None) -> Difference:
    """Return the fields in which ``new`` differs from ``old``."""
    found = Difference()
    _compare(old, new, schema, (), found)
    return found


def _compare(old: Any, new: Any, schema: Schema | None, path: Path, found: Difference) -> None:
    children = _children(old, new, schema, path)
    if children is None:
        if old is _ABSENT:
            found.added.add(path)
        elif new is _ABSENT:
            found.removed.add(path)
        elif old != new:
            found.modified.add(path)
        return
    for element, before, after, below in children:
        _compare(before, after, below, (*path, element), found)
    if path and old is _ABSENT:
        found.added.add(path)
    if path and new is _ABSENT:
        found.removed.add(path)


def _children(
    old: Any, new: Any, schema: Schema | None, path: Path
) -> list[tuple[str, Any, Any, Schema | None]] | None:
    """Return the child elements with both values; None for a leaf."""
    kinds = {type(value) for value in (old, new) if value is not _ABSENT and value is not None}
    if len(kinds) != 1 or any(_leaf(value, schema) for value in (old, new) if type(value) in kinds):
        return None
    before, after = (None if value is _ABSENT else value for value in (old, new))
    if not before and not after:
        return None
    if kinds == {list}:
        assert schema is not None
        one, two = _items(before, schema, path), _items(after, schema, path)
        return [
            (element, one.get(element, _ABSENT), two.get(element, _ABSENT), schema.items)
            for element in {**one, **two}
        ]
    one, two = before or {}, after or {}
    return [
        (
            f"f:{key}",
            one.get(key, _ABSENT),
            two.get(key, _ABSENT),
            None if schema is None else schema.at(key),
        )
        for key in {**one, **two}
    ]


def merged(live: Any, applied: Any, schema: Schema | None) -> Any:
    """Merge ``applied`` into ``live`` and return the result."""
    if type(live) is not type(applied) or _leaf(applied, schema):
        return copied(applied)
    if isinstance(applied, list):
        assert schema is not None
        before, after = _items(live, schema, ()), _items(applied, schema, ())
        result = [
            merged(before[element], item, schema.items) if element in before else item
            for element, item in after.items()
        ]
        rest = [item for element, item in before.items() if element not in after]
        return copied(_in_order([*before], [*after], result, rest))
    result = dict(live)
    for key, value in applied.items():
        below = None if schema is None else schema.at(key)
        result[key] = merged(live.get(key), value, below)
    return result


def _in_order(before: list[str], after: list[str], result: list, rest: list) -> list:
    """Keep the existing order if the applied order is consistent with it."""
    common = [element for element in before if element in after]
    if common != [element for element in after if element in before]:
        return [*result, *rest]
    by_element = dict(zip(after, result, strict=True))
    kept = [element for element in before if element not in after]
    by_element |= dict(zip(kept, rest, strict=True))
    order = [*before, *(element for element in after if element not in before)]
    return [by_element[element] for element in order]


def without(value: Any, gone: Fields, kept: Fields, schema: Schema | None, path: Path = ()) -> Any:
    """Return ``value`` without the fields in ``gone``, all but those in ``kept``.

    A container in ``gone``, or a struct without remaining fields, is removed unless it still
    contains something.
    """
    if _leaf(value, schema):
        return value
    pairs: Iterator[tuple[str, Any, Any, Schema | None]]
    if isinstance(value, list):
        assert schema is not None
        pairs = ((e, e, item, schema.items) for e, item in _items(value, schema, path).items())
    else:
        pairs = (
            (key, f"f:{key}", inner, None if schema is None else schema.at(key))
            for key, inner in value.items()
        )
    result: dict[str, Any] = {}
    for key, element, inner, below in pairs:
        at = (*path, element)
        touched = any(one[: len(at)] == at for one in gone)
        if not touched:
            result[key] = inner
            continue
        if _leaf(inner, below):
            if at not in gone or at in kept:
                result[key] = inner
            continue
        left = without(inner, gone, kept, below, at)
        owned = any(one[: len(at)] == at for one in kept)
        if left not in ({}, []) or owned:
            item_gone = at in gone and not owned and isinstance(value, list)
            if not item_gone:
                result[key] = left
    return [*result.values()] if isinstance(value, list) else result
