"""A request's lists are checked up to the first item that is wrong.

pydantic describes each of them, for each type that it might have been: an input of 5,000 wrong
items has 300,000 errors, for which the event loop stands still for seconds. No client reads them.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import SchemaValidator
from starlette.routing import BaseRoute

_LISTS = frozenset({"list", "set", "frozenset", "tuple"})


def fail_fast(app: FastAPI) -> None:
    """Let the routes of an app check their bodies so.

    Raises:
        RuntimeError: this FastAPI keeps a body's validator elsewhere.
    """
    changed = sum(map(_change, _fields(app.router.routes)))
    if not changed:
        raise RuntimeError("FastAPI's routes have no bodies whose checks could be changed")


def _fields(routes: Iterable[BaseRoute]) -> Iterable[Any]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield from route.dependant.body_params
            if route.body_field is not None:
                yield route.body_field


def _change(field: Any) -> bool:
    adapter = getattr(field, "_type_adapter", None)
    if adapter is None:
        return False
    adapter.validator = SchemaValidator(_with_first_error(adapter.core_schema), _use_prebuilt=False)
    return True


def _with_first_error(schema: Any) -> Any:
    """Return pydantic's schema with all its lists so."""
    if isinstance(schema, dict):
        found = {name: _with_first_error(each) for name, each in schema.items()}
        if isinstance(kind := found.get("type"), str) and kind in _LISTS:
            found["fail_fast"] = True
        return found
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_first_error, schema))
    return schema
