"""What a request brings beside its content: its id and its deadline, for both protocols."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from uuid import uuid4

from serving.clock import Clock
from serving.errors import InvalidRequest
from serving.fleet.deadline import deadline_var

REQUEST_ID = "x-request-id"
TIMEOUT = "x-request-timeout-ms"

# Visible ASCII: the id becomes part of headers, log lines and the engine's request id.
_VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TIMEOUT_MS = 24 * 3600 * 1000


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the client's request id, or a new one.

    Raises:
        InvalidRequest: it is not 1 to 128 visible ASCII characters.
    """
    given = headers.get(REQUEST_ID)
    if given is None:
        return uuid4().hex
    if _VALID_ID.fullmatch(given) is None:
        raise InvalidRequest(f"{REQUEST_ID} must be 1 to 128 visible ASCII characters")
    return given


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """Return the client's time limit in seconds, or none.

    Raises:
        InvalidRequest: it is not a whole number of milliseconds of at most a day.
    """
    given = headers.get(TIMEOUT)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(_MAX_TIMEOUT_MS))):
        raise InvalidRequest(f"{TIMEOUT} must be a whole number of milliseconds, got {given!r}")
    milliseconds = int(given)
    if not 1 <= milliseconds <= _MAX_TIMEOUT_MS:
        raise InvalidRequest(f"{TIMEOUT} must be 1 to {_MAX_TIMEOUT_MS}, got {milliseconds}")
    return milliseconds / 1000


def set_deadline(seconds: float | None, clock: Clock) -> Token[float | None]:
    """Give the requests that start from here on ``seconds``; none: no end of their own."""
    return deadline_var.set(None if seconds is None else clock.monotonic() + seconds)


@contextmanager
def deadline_in(seconds: float | None, clock: Clock) -> Iterator[None]:
    """Give the requests that start in the block ``seconds`` from now; none: no end of their own.

    None is set too: uvicorn may read a connection's next request in the context of the one
    before, whose deadline it must not get.
    """
    token = set_deadline(seconds, clock)
    try:
        yield
    finally:
        deadline_var.reset(token)
