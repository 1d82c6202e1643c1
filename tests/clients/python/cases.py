"""Requests and checks that several scripts share."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from frame import QUESTION

AnswerT = TypeVar("AnswerT")

WAIT = 60.0
"""Seconds after which an awaited event counts as lost."""
ENOUGH = 300
"""max_tokens with which the question is answered completely."""
SYSTEM = "Answer with a number."
USER = [{"role": "user", "content": QUESTION}]
TURNS = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "2"},
    *USER,
]
LARGE = "x" * (5 * 2**20)
"""A prompt beyond the limit of 4 MiB for bodies."""
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["answer"],
    "additionalProperties": False,
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ABOUT = "Weather of a city for some days"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": ABOUT,
        "strict": True,
        "parameters": PARAMETERS,
    },
}
WEATHER_QUESTION = "What is the weather in Bern?"


def check_arguments(arguments: str | dict[str, Any]) -> None:
    """Check that a forced tool call matches its schema."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(found) == {"city", "days"}, found
    assert found["city"] in {"Bern", "Rome"}, found
    assert 1 <= found["days"] <= 9, found


def check_schema(text: str) -> None:
    """Check that structured output matches its schema."""
    found = json.loads(text)
    assert set(found) == {"answer"}, text
    assert 0 <= found["answer"] <= 999, text


@contextmanager
def raises(error: type[BaseException]) -> Iterator[list[Any]]:
    """Expect an error; it is in the yielded list afterwards."""
    caught: list[Any] = []
    try:
        yield caught
    except error as found:
        caught.append(found)
    assert caught, f"no {error.__name__}"


def admitted(ask: Callable[[], AnswerT], refused: type[BaseException]) -> AnswerT:
    """Send a request with the narrow key until it is admitted, i.e. the previous one has ended."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return ask()
        except refused:
            assert time.monotonic() < deadline, "the request that ended here still runs there"
            time.sleep(0.1)


class Refusals:
    """An httpx hook that records responses with status 429."""

    def __init__(self) -> None:
        self.retry_after: list[str | None] = []
        self.seen = threading.Event()

    def __call__(self, response: Any) -> None:
        """Record a response."""
        if response.status_code == 429:
            self.retry_after.append(response.headers.get("retry-after"))
            self.seen.set()


def retried(
    hold: Callable[[], AbstractContextManager[Any]],
    ask: Callable[[], AnswerT],
    refusals: Refusals,
) -> AnswerT:
    """Return the result of ``ask``, which is rejected while ``hold`` is open."""
    with ThreadPoolExecutor(1) as pool:
        with hold():
            answer = pool.submit(ask)
            assert refusals.seen.wait(WAIT), "nothing was refused"
        found = answer.result(WAIT)
    assert all(refusals.retry_after), "a refusal without Retry-After"
    return found
