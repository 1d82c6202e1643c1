"""Converts ``serving.errors`` to exceptions that vLLM's handlers map to the same HTTP status.

vLLM derives the HTTP status from vLLM exception classes, even in the middle of a stream, where the
app's exception handlers are not called. Exceptions raised by ``FleetClient`` therefore have two
base classes: the ``ServingError``, for the router's edges, and ``GracefulHTTPError`` (for status
400, ``VLLMValidationError``), for vLLM's handlers.
"""

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from serving.errors import (
    AdapterNotLoaded,
    EngineError,
    GroupLost,
    InvalidRequest,
    Overloaded,
    ServingError,
    status_of,
)
from serving.link.v1 import link_pb2

_Code = link_pb2.RequestError
_CLASSES: dict[type[ServingError], type[ServingError]] = {}
"""For each error class, the class with both bases; created on first use."""


def as_vllm_error(error: ServingError) -> ServingError:
    """Return the error as an exception that vLLM's handlers map to the same HTTP status."""
    cls = type(error)
    if cls in _CLASSES.values():
        return error
    vllm_class = VLLMValidationError if isinstance(error, InvalidRequest) else GracefulHTTPError
    if cls not in _CLASSES:
        # ServingError first: its exception handlers take precedence over those for vLLM's errors.
        _CLASSES[cls] = type(cls.__name__, (cls, vllm_class), {"__doc__": cls.__doc__})
    status = () if vllm_class is VLLMValidationError else (HTTPStatus(status_of(error).http),)
    converted = _CLASSES[cls].__new__(_CLASSES[cls], str(error))
    vllm_class.__init__(converted, str(error), *status)
    vars(converted).update(vars(error))
    converted.__cause__ = error.__cause__
    return converted


def error_of(error: link_pb2.RequestError) -> ServingError:
    """Convert an error reported by a rank for a request."""
    match error.code:
        case _Code.INVALID_REQUEST:
            return InvalidRequest(error.message)
        case _Code.DRAINING:
            return GroupLost(error.message or "the rank is draining; try again", refused=True)
        case _Code.OVERLOADED:
            return Overloaded(error.message or "the rank is at its request limit; try again later")
        case _Code.ADAPTER:
            return AdapterNotLoaded(error.message or "the rank cannot load the adapter")
        case _Code.ABORTED:
            return GroupLost(error.message or "the rank aborted the request; try again")
        case _:
            return EngineError(error.message or "the engine failed on the request")
