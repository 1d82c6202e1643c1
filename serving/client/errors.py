"""Errors of clients, and the ``ServingError`` that each status stands for."""

from collections.abc import Mapping
from typing import Any, Literal

from serving.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    ServingError,
    SettingsError,
    StorageFull,
    Unauthenticated,
    Unsupported,
)

__all__ = [
    "ClientError",
    "EngineError",
    "ErrorKind",
    "InvalidRequest",
    "NotReady",
    "ServingError",
    "SettingsError",
    "class_of_code",
    "class_of_status",
    "message_of",
]

ErrorKind = Literal["connect", "refused", "rejected", "broken", "timeout"]

_BY_STATUS: dict[int, type[ServingError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: ModelNotFound,
    409: Conflict,
    422: InvalidRequest,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
    507: StorageFull,
}
_BY_CODE: dict[str, type[ServingError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "NOT_FOUND": ModelNotFound,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": NotReady,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "UNIMPLEMENTED": Unsupported,
}


class ClientError(Exception):
    """A request of an asyncio client failed.

    Kinds:

    - ``connect``: no server responds at the address
    - ``refused``: the server requests a later retry (429, 503)
    - ``rejected``: any other error status
    - ``broken``: the stream ended early or has invalid content
    - ``timeout``: the request took too long
    """

    def __init__(self, kind: ErrorKind, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        """HTTP status. None if there was no response, and for gRPC calls."""


def class_of_status(status: int) -> type[ServingError]:
    """Return the error that an HTTP status stands for."""
    return _BY_STATUS.get(status, EngineError)


def class_of_code(name: str) -> type[ServingError]:
    """Return the error that a gRPC status code stands for, by the code's name."""
    return _BY_CODE.get(name, EngineError)


def message_of(body: Any) -> str:
    """Return the message in a decoded error body (``{"error": {"message": …}}``), or the body."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        return str(error.get("message", error))
    return str(error)
