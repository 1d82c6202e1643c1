"""Headers that the router adds to responses, and the rewriting of redirects."""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from math import ceil
from urllib.parse import urlsplit, urlunsplit

from starlette.types import Scope

from serving.edge.request_headers import BUDGET_WARNING, COST, EXPLAIN, REQUEST_ID
from serving.vllm_adapter import anthropic_errors
from serving.vllm_adapter.error_response import is_retryable

Header = tuple[bytes, bytes]


def response_headers(
    scope: Scope,
    status: int,
    present: Iterable[Header],
    *,
    request_id: str | None,
    retry_after: float | None,
    explanation: str | None,
    budget_warning: str | None,
    cost: str | None,
) -> Iterator[Header]:
    """Yield all headers of a response.

    Args:
        scope: ASGI scope of the request.
        status: HTTP status of the response.
        present: Headers sent by the app.
        request_id: The request's id. None if the client sent a malformed one.
        retry_after: Time after which the client may retry, seconds. None if unknown.
        explanation: The routing decisions. None if not requested or not known.
        budget_warning: Warning about a budget. None if there is none.
        cost: The cost of the request. None if not requested or not known.
    """
    present = list(present)
    yield from map(_without_origin, present)
    if request_id is not None:
        value = request_id.encode("latin-1")
        yield REQUEST_ID.encode(), value
        if anthropic_errors.reads_request_id(scope["path"], scope["headers"]):
            yield anthropic_errors.REQUEST_ID, value
    named = any(name.lower() == b"retry-after" for name, _ in present)
    if is_retryable(status) and retry_after is not None and not named:
        # HTTP requires whole seconds; rounded up, never 0.
        yield b"retry-after", str(max(ceil(retry_after), 1)).encode()
    if status == HTTPStatus.UNAUTHORIZED:
        yield b"www-authenticate", b"Bearer"
    if explanation is not None:
        yield EXPLAIN.encode(), explanation.encode()
    if budget_warning is not None:
        yield BUDGET_WARNING.encode(), budget_warning.encode()
    if cost is not None:
        yield COST.encode(), cost.encode()


def _without_origin(header: Header) -> Header:
    """Remove scheme and host from a redirect, because those of a proxy in front differ."""
    name, value = header
    if name.lower() != b"location":
        return header
    parts = urlsplit(value.decode("latin-1"))
    return name, urlunsplit(("", "", *parts[2:])).encode("latin-1")
