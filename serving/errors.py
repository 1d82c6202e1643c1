"""All errors that a client can see, and the table of their statuses.

    ServingError
    ├── InvalidRequest          the request is invalid
    │   └── SettingsError       the settings are invalid, at start-up
    ├── ModelNotFound           the model is not served
    ├── GroupNotFound           no group has that name
    ├── ResourceNotFound        no file or batch has that id
    ├── Conflict                the state of a file or batch does not permit this
    ├── StorageFull             the storage of files and batches is full
    ├── Unauthenticated         no valid key
    ├── PermissionDenied        the key lacks the permission
    ├── Overloaded              too many requests; retry later
    ├── BudgetExceeded          the tenant's or the key's budget is used up
    ├── AdapterNotLoaded        the rank cannot load the request's LoRA adapter
    ├── NotReady                no group can run the request now
    ├── GroupLost               the request's group was lost
    ├── PoisonRequest           the request makes groups fail
    ├── DeadlineExceeded        the request's deadline passed
    ├── Cancelled               the client disconnected
    ├── Unsupported             not supported by the model or this build
    ├── EngineError             the engine failed on the request
    ├── PlacementError          the cluster has no capacity for the group
    └── LinkRefused             router and rank do not match

Status codes are names, so that this module does not import ``grpc``.
"""

from dataclasses import dataclass


class ServingError(Exception):
    """Base class of all errors that a user can see; the message states the remedy."""


class InvalidRequest(ServingError):
    """The request is malformed or a value is out of range."""


class SettingsError(InvalidRequest):
    """The settings are invalid; the process does not start."""


class ModelNotFound(ServingError):
    """This router does not serve the requested model."""


class GroupNotFound(ServingError):
    """This router has no group with that name."""


class ResourceNotFound(ServingError):
    """The tenant has no file or batch with that id."""


class Conflict(ServingError):
    """The state of a file or batch does not permit the operation."""


class StorageFull(ServingError):
    """The storage of files and batches is full or cannot be written."""


class Unauthenticated(ServingError):
    """The request has no valid credentials."""


class PermissionDenied(ServingError):
    """The credentials do not permit this operation."""


class Overloaded(ServingError):
    """The system rejects work that it could not finish in time.

    Args:
        message: The limit that was reached.
        retry_after: Time after which a retry is worthwhile, seconds. None if unknown.
    """

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetExceeded(ServingError):
    """The budget of the tenant or the key is used up until it renews.

    Args:
        message: The budget, and when it renews.
        renews_at: Start of the budget's next period, Unix seconds. None if unknown.
        retry_after: Time after which a retry is worthwhile, seconds: the time until the renewal, or
            less if only requests in flight hold the rest of the budget. None if unknown.
    """

    def __init__(
        self,
        message: str = "",
        *,
        renews_at: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.renews_at = renews_at
        self.retry_after = retry_after


class AdapterNotLoaded(ServingError):
    """The rank cannot load the request's LoRA adapter."""


class NotReady(ServingError):
    """No group of ranks is ready to serve the request."""


class GroupLost(ServingError):
    """The group that ran the request was lost, and the request could not resume on another one.

    Args:
        message: Description of the loss.
        planned: Whether the group was removed on purpose (drained or replaced); the request is then
            not a suspect.
        final: Whether the request must not be retried on another group.
        refused: Whether the rank itself rejected the request because it is draining.
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
    """Groups failed as soon as they ran this request; it is not retried."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before it finished."""


class Cancelled(ServingError):
    """The client cancelled the request or disconnected."""


class CancelledByOperator(Cancelled):
    """An operator, or another user of the tenant, cancelled the request in the console."""


class Unsupported(ServingError):
    """The model or this build does not support the request."""


class EngineError(ServingError):
    """The engine failed on this request."""


class PlacementError(ServingError):
    """The cluster has no capacity for a group; the message lists the missing resources."""


class LinkRefused(ServingError):
    """A router rejected a rank, or a rank rejected a router; the message states the mismatch."""


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """Statuses of an error: gRPC status name, HTTP status, and a stable reason for programs."""

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
    ResourceNotFound: ErrorStatus("NOT_FOUND", 404, "RESOURCE_NOT_FOUND", retryable=False),
    Conflict: ErrorStatus("FAILED_PRECONDITION", 409, "CONFLICT", retryable=False),
    StorageFull: ErrorStatus("RESOURCE_EXHAUSTED", 507, "STORAGE_FULL", retryable=True),
    Unauthenticated: ErrorStatus("UNAUTHENTICATED", 401, "UNAUTHENTICATED", retryable=False),
    PermissionDenied: ErrorStatus("PERMISSION_DENIED", 403, "PERMISSION_DENIED", retryable=False),
    Overloaded: ErrorStatus("RESOURCE_EXHAUSTED", 429, "OVERLOADED", retryable=True),
    BudgetExceeded: ErrorStatus("RESOURCE_EXHAUSTED", 402, "BUDGET_EXCEEDED", retryable=False),
    AdapterNotLoaded: ErrorStatus("FAILED_PRECONDITION", 503, "ADAPTER_NOT_LOADED", retryable=True),
    NotReady: ErrorStatus("UNAVAILABLE", 503, "NOT_READY", retryable=True),
    GroupLost: ErrorStatus("UNAVAILABLE", 503, "GROUP_LOST", retryable=True),
    PoisonRequest: ErrorStatus("INTERNAL", 500, "POISON_REQUEST", retryable=False),
    DeadlineExceeded: ErrorStatus("DEADLINE_EXCEEDED", 504, "DEADLINE_EXCEEDED", retryable=False),
    Cancelled: ErrorStatus("CANCELLED", 499, "CANCELLED", retryable=False),
    # Client libraries retry 409 automatically, and vLLM's handlers do not support 499.
    CancelledByOperator: ErrorStatus(
        "PERMISSION_DENIED", 403, "CANCELLED_BY_OPERATOR", retryable=False
    ),
    Unsupported: ErrorStatus("UNIMPLEMENTED", 501, "UNSUPPORTED", retryable=False),
    EngineError: ErrorStatus("INTERNAL", 500, "ENGINE", retryable=True),
    PlacementError: ErrorStatus("FAILED_PRECONDITION", 503, "PLACEMENT", retryable=True),
    LinkRefused: ErrorStatus("FAILED_PRECONDITION", 503, "LINK_REFUSED", retryable=False),
}


def status_of(error: BaseException) -> ErrorStatus:
    """Return the status of the error's nearest class in the table.

    Errors of other classes are internal, and their text must not reach a client.
    """
    for cls in type(error).__mro__:
        if cls in ERROR_TABLE:
            return ERROR_TABLE[cls]
    return ERROR_TABLE[ServingError]
