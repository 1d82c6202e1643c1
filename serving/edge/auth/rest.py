"""What a REST request must show before it gets to the app: a key, and headers that make sense."""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.edge.auth.authenticator import SECRET_HEADERS, Authenticator, Identity
from serving.edge.auth.permissions import Need, is_preflight, need_of_route
from serving.edge.callers import caller_of
from serving.errors import InvalidRequest, PermissionDenied, Unauthenticated
from serving.request_context import Caller
from serving.telemetry import metrics

_SECRETS = frozenset(name.encode() for name in SECRET_HEADERS)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who was let in."""

    identity: Identity
    caller: Caller | None
    """Of work; none for pages."""


class Door:
    """Lets REST requests in, or says why not."""

    def __init__(self, authenticator: Authenticator, *, open_metrics: bool = False) -> None:
        self._authenticator = authenticator
        self._open_metrics = open_metrics

    def enter(self, scope: Scope, *, is_work: bool) -> Visitor:
        """Return who calls; keys stay outside: the scope's headers lose them.

        Raises:
            Unauthenticated: there is no valid key, and it takes one.
            PermissionDenied: the key may not do this.
            InvalidRequest: it wants a WebSocket, or a header is malformed.
        """
        headers = Headers(scope=scope)
        need = need_of_route(scope["path"], open_metrics=self._open_metrics)
        if is_preflight(scope["method"], frozenset(headers.keys())):
            need = Need.NOTHING
        try:
            identity = self._authenticator.authenticate(headers, need)
            if "websocket" in headers.get("upgrade", "").lower():
                raise InvalidRequest("WebSockets are not served here: use HTTP")
            caller = caller_of(identity, headers) if is_work else None
        except (Unauthenticated, PermissionDenied) as error:
            metrics.AUTH_FAILURES.labels("rest", error_reason(error)).inc()
            raise
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in _SECRETS]
        return Visitor(identity, caller)


def error_reason(error: Unauthenticated | PermissionDenied) -> str:
    """Return the label under which a refusal is counted."""
    return "UNAUTHENTICATED" if isinstance(error, Unauthenticated) else "PERMISSION_DENIED"
