"""The patch formats of an API server: JSON patch, JSON merge patch, strategic merge patch.

Errors as recorded: a merge patch whose body is a JSON array is 400 with Go's message; a JSON patch
that does not apply, such as a failing ``test``, is 422 with ``reason: Invalid``.
Strategic merge patch follows its design document (patchMergeKey, ``$patch``, ``$retainKeys``,
``$setElementOrder``, ``$deleteFromPrimitiveList``); the schema determines the kind of each list.
"""

from typing import Any

import jsonpatch

from tests.kube.copies import copied
from tests.kube.errors import ApiError, bad_request, invalid_patch
from tests.kube.schemas import Schema

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = ("application/apply-patch+yaml", "application/apply-patch+cbor")
_GO_NAMES = {
    list: "array",
    dict: "object",
    str: "string",
    int: "number",
    float: "number",
    bool: "bool",
}


def unsupported(content_type: str, *, custom: bool) -> ApiError:
    """Custom resources have no strategic merge patch: their Go types are unknown."""
    taken = [JSON, MERGE, *([] if custom else [STRATEGIC]), APPLY[0], APPLY[1]]
    message = "the body of the request was in an unknown format - accepted media types include: "
    return ApiError(415, message + ", ".join(taken))


def patched(live: Any, patch: Any, content_type: str, schema: Schema, *, custom: bool) -> Any:
    """Return a copy of ``live`` with a patch applied.

    Raises:
        ApiError: 400, 415 or 422.
    """
    live = copied(live)
    if content_type == JSON:
        return json_patched(live, patch)
    if content_type == MERGE:
        return merged(live, _an_object(patch))
    if content_type == STRATEGIC and not custom:
        return strategic(live, _an_object(patch), schema)
    raise unsupported(content_type, custom=custom)


def _an_object(patch: Any) -> dict[str, Any]:
    if not isinstance(patch, dict):
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {_GO_NAMES.get(type(patch), 'null')} "
            "into Go value of type map[string]interface {}"
        )
    return patch


def json_patched(live: Any, patch: Any) -> Any:
    """Apply a JSON patch (RFC 6902)."""
    if not isinstance(patch, list):
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {_GO_NAMES.get(type(patch), 'null')} "
            "into Go value of type []interface {}"
        )
    try:
        return jsonpatch.apply_patch(live, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise invalid_patch() from error


def merged(live: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def strategic(live: Any, patch: dict[str, Any], schema: Schema | None) -> Any:
    """Merge ``patch`` into the map or struct ``live``."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    result = dict(live) if isinstance(live, dict) else {}
    if (kept := patch.get("$retainKeys")) is not None:
        result = {key: value for key, value in result.items() if key in kept}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        below = None if schema is None else schema.at(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            replace = below is not None and "replace" in below.strategies
            result[key] = value if replace else strategic(result.get(key), value, below)
        elif isinstance(value, list):
            order = patch.get(f"$setElementOrder/{key}")
            result[key] = _merged_list(result.get(key) or [], value, below, order)
        else:
            result[key] = value
    _directed_lists(result, patch, schema)
    return result


def _directed_lists(result: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> None:
    """Apply the list directives of a patch that have no values."""
    for directive, value in patch.items():
        word, _, key = directive.partition("/")
        if word == "$deleteFromPrimitiveList":
            result[key] = [item for item in result.get(key) or [] if item not in value]
        elif word == "$setElementOrder" and key in result:
            below = None if schema is None else schema.at(key)
            result[key] = _ordered(result[key], value, "" if below is None else below.merge_key)


def _merged_list(live: list, patch: list, schema: Schema | None, order: list | None) -> list:
    if schema is None or "merge" not in schema.strategies:
        return patch
    key = schema.merge_key
    if not key:
        return [*live, *(item for item in patch if item not in live)]
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    result = [*live]
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((n for n, old in enumerate(result) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [old for old in result if old.get(key) != item[key]]
        elif at is None:
            result.append(strategic({}, item, schema.items))
        else:
            result[at] = strategic(result[at], item, schema.items)
    return _ordered(result, order, key) if order else result


def _ordered(items: list, order: list, key: str) -> list:
    """Sort by ``order``; items not in it keep their place after their predecessors."""
    names = [item.get(key) if isinstance(item, dict) else item for item in order]
    places, last = {}, -1
    for number, item in enumerate(items):
        name = item.get(key) if isinstance(item, dict) else item
        last = names.index(name) if name in names else last
        places[number] = (last, number)
    return [items[number] for number in sorted(places, key=places.__getitem__)]
