"""The request of a line, its response, and what to do with the response."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

import msgspec

from serving.batch.result_lines import content_of, response_of


@dataclass(frozen=True, slots=True)
class LineRequest:
    """The request of a line."""

    tenant: str
    key_id: str | None
    endpoint: str
    body: bytes
    request_id: str
    deadline: float
    """End of the completion window, seconds on the router's monotonic clock."""


@dataclass(frozen=True, slots=True)
class LineResponse:
    """A complete response."""

    status: int
    body: bytes


SendLine = Callable[[LineRequest], Awaitable[LineResponse]]
"""Sends a request through the same path as clients' requests; see ``serving.edge.rest``."""


class Verdict(StrEnum):
    """What to do with a response."""

    ANSWER = "answer"
    """It is the line's answer."""
    REPEAT = "repeat"
    """The line did not cause the failure: send the request again later."""
    RETRY = "retry"
    """The engine failed: send the request again, a few times."""


_REPEATED = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    # The window has ended; the batch expires at the next look.
    HTTPStatus.GATEWAY_TIMEOUT,
}
_FINAL_REASONS = frozenset({"POISON_REQUEST"})
_SOON = 60.0
"""``retry_after`` up to which a line waits for its budget, seconds: requests in flight have
reserved the rest of it, and use less than they reserved."""


class _Error(msgspec.Struct):
    reason: str | None = None
    retry_after: float | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens of a response, with the names of chats or of /v1/responses."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None

    @property
    def prompt(self) -> int:
        """Prompt tokens, cached ones included."""
        return self.prompt_tokens or self.input_tokens or 0

    @property
    def generated(self) -> int:
        """Generated tokens."""
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int:
        """Prompt tokens from a KV cache."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return 0 if details is None else details.cached_tokens or 0


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_errors = msgspec.json.Decoder(_ErrorBody)
_answers = msgspec.json.Decoder(_Answer)


def verdict_on(response: LineResponse) -> Verdict:
    """Return what to do with a response."""
    if response.status in _REPEATED:
        return Verdict.REPEAT
    if response.status < HTTPStatus.BAD_REQUEST:
        return Verdict.ANSWER
    try:
        error = _errors.decode(response.body).error
    except msgspec.DecodeError:
        error = None
    if response.status == HTTPStatus.PAYMENT_REQUIRED and error is not None:
        after = error.retry_after
        return Verdict.ANSWER if after is None or after > _SOON else Verdict.REPEAT
    if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Verdict.ANSWER
    final = error is not None and error.reason in _FINAL_REASONS
    unsupported = response.status == HTTPStatus.NOT_IMPLEMENTED
    return Verdict.ANSWER if final or unsupported else Verdict.RETRY


def usage_of(response: LineResponse) -> Usage:
    """Return the tokens of a response; zeros if it has none."""
    try:
        return _answers.decode(response.body).usage or Usage()
    except msgspec.DecodeError:
        return Usage()


def answer_content(custom_id: str, request_id: str, response: LineResponse) -> bytes:
    """Return the line of a result file for a response, without its id."""
    try:
        msgspec.json.decode(response.body, type=msgspec.Raw)
        body = response.body
    except msgspec.DecodeError:
        body = msgspec.json.encode(response.body.decode("utf-8", "replace"))
    return content_of(custom_id, response=response_of(response.status, request_id, body))
