"""Our errors in the shape that vLLM's OpenAI handlers understand.

vLLM turns an exception into a status by its own classes, also in the middle of a stream, where
no handler of ours is asked. So what leaves ``FleetClient`` is both: a ``ServingError`` for our
edges and a ``GracefulHTTPError`` (or, for 400, a ``VLLMValidationError``) for vLLM's handlers.
"""

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from serving.errors import (
    EngineError,
    GroupLost,
    InvalidRequest,
    Overloaded,
    ServingError,
    status_of,
)
from serving.link.v1 import link_pb2

_Code = link_pb2.RequestError
_TWINS: dict[type[ServingError], type[ServingError]] = {}
"""A class of both kinds for each of ours, made when it is first needed."""


def visible(error: ServingError) -> ServingError:
    """Return the same error in a class that vLLM's handlers map to the same HTTP status."""
    ours = type(error)
    if ours in _TWINS.values():
        return error
    foreign = VLLMValidationError if isinstance(error, InvalidRequest) else GracefulHTTPError
    if ours not in _TWINS:
        # Ours first: handlers for ServingError win over those for vLLM's errors.
        _TWINS[ours] = type(ours.__name__, (ours, foreign), {"__doc__": ours.__doc__})
    status = () if foreign is VLLMValidationError else (HTTPStatus(status_of(error).http),)
    made = _TWINS[ours].__new__(_TWINS[ours], str(error))
    foreign.__init__(made, str(error), *status)
    vars(made).update(vars(error))
    made.__cause__ = error.__cause__
    return made


def error_of(error: link_pb2.RequestError) -> ServingError:
    """Return the error that a rank reports for a request."""
    match error.code:
        case _Code.INVALID_REQUEST:
            return InvalidRequest(error.message)
        case _Code.DRAINING:
            return GroupLost(error.message or "the rank is going away; try again", refused=True)
        case _Code.OVERLOADED:
            return Overloaded(error.message or "the rank is full; try again later")
        case _Code.ABORTED:
            return GroupLost(error.message or "the rank ended the request; try again")
        case _:
            return EngineError(error.message or "the engine failed on the request")
