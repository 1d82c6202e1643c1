"""Validation of request bodies that stops at the first invalid item of a list.

pydantic reports every invalid item of a list, for every type that the item might have. An input of
5,000 invalid items produces 300,000 errors, which blocks the event loop for seconds.

vLLM's validators access fields before pydantic has checked their types, so a string in place of an
object raises ``AttributeError``. Such exceptions become ``InvalidRequest``: status 400, not 500.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import SchemaValidator, ValidationError
from starlette.routing import BaseRoute
from vllm.exceptions import VLLMError

from serving.errors import InvalidRequest
from serving.vllm_adapter.error_response import UNREADABLE

_LISTS = frozenset({"list", "set", "frozenset", "tuple"})


def fail_fast(app: FastAPI) -> None:
    """Replace the body validators of an app's routes.

    Raises:
        RuntimeError: this version of FastAPI stores the validators elsewhere.
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
    adapter.validator = _BodyValidator(_with_first_error(adapter.core_schema))
    return True


class _BodyValidator:
    """Validates a body like pydantic; unexpected exceptions become ``InvalidRequest``."""

    def __init__(self, schema: Any) -> None:
        self._validator = SchemaValidator(schema, _use_prebuilt=False)

    def validate_python(self, value: Any, **options: Any) -> Any:
        """Return the validated body.

        Raises:
            ValidationError: pydantic rejects the body.
            VLLMError: one of vLLM's validators rejects it.
            InvalidRequest: one of vLLM's validators failed with another exception.
        """
        try:
            return self._validator.validate_python(value, **options)
        except (ValidationError, VLLMError):
            raise
        except Exception as error:
            raise InvalidRequest(UNREADABLE) from error


def _with_first_error(schema: Any) -> Any:
    """Return a pydantic schema whose lists stop at the first invalid item."""
    if isinstance(schema, dict):
        found = {name: _with_first_error(each) for name, each in schema.items()}
        if isinstance(kind := found.get("type"), str) and kind in _LISTS:
            found["fail_fast"] = True
        return found
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_first_error, schema))
    return schema
