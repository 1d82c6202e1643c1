"""Every error that leaves this package, and the one table that says how it leaves.

    ServingError
    ├── InvalidRequest          the request itself is wrong
    │   └── SettingsError       so are the settings, at start-up
    ├── ModelNotFound           no such model is served here
    ├── GroupNotFound           no group of that name is here
    ├── Unauthenticated         no valid key
    ├── PermissionDenied        the key may not do this
    ├── Overloaded              too much work; come back later
    ├── NotReady                no group can take the request now
    ├── GroupLost               the group died under the request
    ├── PoisonRequest           groups die of the request
    ├── DeadlineExceeded        the request's deadline passed
    ├── Cancelled               the client went away
    ├── Unsupported             the model or this build cannot do it
    ├── EngineError             the engine failed on the request
    ├── PlacementError          the cluster cannot hold the group
    └── LinkRefused             router and rank do not fit together

``grpc`` is not imported here: the table names status codes as text.
"""

from dataclasses import dataclass


class ServingError(Exception):
    """Base of all errors that a user may see; the message says what to do."""


class InvalidRequest(ServingError):
    """The request is malformed or asks for something out of range."""


class SettingsError(InvalidRequest):
    """The settings are invalid; the process does not start."""


class ModelNotFound(ServingError):
    """The requested model is not served here."""


class GroupNotFound(ServingError):
    """No group of that name is known to this router."""


class Unauthenticated(ServingError):
    """The request carries no valid credentials."""


class PermissionDenied(ServingError):
    """The credentials do not allow this."""


class Overloaded(ServingError):
    """The system refuses work that it could not finish in time.

    Args:
        message: what there is too much of.
        retry_after: seconds after which it is worth another try, if that is known.
    """

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(ServingError):
    """No group of ranks is ready to take the request."""


class GroupLost(ServingError):
    """The group of ranks that ran the request was lost and it could not go on elsewhere.

    Args:
        message: what happened.
        planned: the group was taken away on purpose (drain, hand-over), so nothing speaks
            against the request.
        final: it must not be tried on a further group.
        refused: the rank itself says that it takes no new work.
    """

    def __init__(
        self,
        message: str = "",
        *,
        planned: bool = False,
        final: bool = False,
        refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.planned = planned or refused
        self.final = final
        self.refused = refused


class PoisonRequest(ServingError):
    """Groups died as soon as they ran this request; it is not tried on any more of them."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before it was finished."""


class Cancelled(ServingError):
    """The client cancelled the request or went away."""


class Unsupported(ServingError):
    """The model, or this build, cannot do what was asked for."""


class EngineError(ServingError):
    """The engine failed on this request."""


class PlacementError(ServingError):
    """The cluster has no room for a group; the message says what is missing."""


class LinkRefused(ServingError):
    """A router refused a rank, or a rank a router; the message says what differs."""


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """How an error leaves: gRPC status name, HTTP status, reason (stable, for programs)."""

    grpc: str
    http: int
    reason: str
    retryable: bool


ERROR_TABLE: dict[type[ServingError], ErrorStatus] = {
    ServingError: ErrorStatus("INTERNAL", 500, "INTERNAL", retryable=False),
    InvalidRequest: ErrorStatus("INVALID_ARGUMENT", 400, "INVALID_REQUEST", retryable=False),
    SettingsError: ErrorStatus("FAILED_PRECONDITION", 500, "SETTINGS", retryable=False),
    ModelNotFound: ErrorStatus("NOT_FOUND", 404, "MODEL_NOT_FOUND", retryable=False),
    GroupNotFound: ErrorStatus("NOT_FOUND", 404, "GROUP_NOT_FOUND", retryable=False),
    Unauthenticated: ErrorStatus("UNAUTHENTICATED", 401, "UNAUTHENTICATED", retryable=False),
    PermissionDenied: ErrorStatus("PERMISSION_DENIED", 403, "PERMISSION_DENIED", retryable=False),
    Overloaded: ErrorStatus("RESOURCE_EXHAUSTED", 429, "OVERLOADED", retryable=True),
    NotReady: ErrorStatus("UNAVAILABLE", 503, "NOT_READY", retryable=True),
    GroupLost: ErrorStatus("UNAVAILABLE", 503, "GROUP_LOST", retryable=True),
    PoisonRequest: ErrorStatus("INTERNAL", 500, "POISON_REQUEST", retryable=False),
    DeadlineExceeded: ErrorStatus("DEADLINE_EXCEEDED", 504, "DEADLINE_EXCEEDED", retryable=False),
    Cancelled: ErrorStatus("CANCELLED", 499, "CANCELLED", retryable=False),
    Unsupported: ErrorStatus("UNIMPLEMENTED", 501, "UNSUPPORTED", retryable=False),
    EngineError: ErrorStatus("INTERNAL", 500, "ENGINE", retryable=True),
    PlacementError: ErrorStatus("FAILED_PRECONDITION", 503, "PLACEMENT", retryable=True),
    LinkRefused: ErrorStatus("FAILED_PRECONDITION", 503, "LINK_REFUSED", retryable=False),
}


def status_of(error: BaseException) -> ErrorStatus:
    """Return the status of the error's nearest class in the table.

    Errors that are not ours are internal: their text must not reach a client.
    """
    for cls in type(error).__mro__:
        if cls in ERROR_TABLE:
            return ERROR_TABLE[cls]
    return ERROR_TABLE[ServingError]
