"""Answers that are too long to be built and encoded in one event-loop iteration.

A small request can have a large answer: a thousand tokens with 20 log probabilities each are 20,000
objects, and vLLM blocks the event loop for a tenth of a second at a time to build and encode them.
Here, they are built in a thread, in which the event loop can interrupt vLLM's code at any time. A
call of the JSON encoder cannot be interrupted, so long lists are encoded in slices.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import StreamingResponse

from serving.h2grpc.turns import TaskTurns

T = TypeVar("T")

LONG = 1_024
"""Number of log probabilities, ids or strings above which an answer is long. An answer with this
many log probabilities takes 5 ms to build."""
_SLICE = 1_024
"""Approximate number of values that are encoded at a time."""
_OF_A_CHOICE = 2
"""Number of log probabilities that take as long as one choice."""
_FREED = 64
"""Number of items that are freed at a time."""
_SENT = 2**18
"""Size of the parts of a response that are sent, bytes."""

_builder = ThreadPoolExecutor(1, "answers")
"""Executor with a single thread, because the event loop would wait for every further thread to
release the interpreter."""


class LongAnswerError(Exception):
    """Carries a long answer through vLLM's route, which would encode it in one step."""

    def __init__(self, answer: BaseModel, options: dict[str, Any]) -> None:
        super().__init__("a long answer must be encoded in parts")
        self.answer = answer
        self.options = options
        """Arguments of ``model_dump``."""


class BuildLaterError(Exception):
    """Carries the rest of a synchronous function's work to its asynchronous caller."""

    def __init__(self, build: Callable[[], Any], outputs: Iterable[Any]) -> None:
        super().__init__("a long answer must be built in a thread")
        self.build = build
        self.outputs = outputs
        """vLLM's request outputs that only ``build`` needs."""


class MaybeLong(BaseModel):
    """Mixin for answers that vLLM's routes encode: ``model_dump`` rejects long ones."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the content for the JSON encoder.

        Raises:
            LongAnswerError: The answer is long; see ``response_in_parts``.
        """
        if is_long(self):
            raise LongAnswerError(self, options)
        return super().model_dump(**options)


def takes_long(outputs: Iterable[Any]) -> bool:
    """Return whether vLLM's request outputs result in a long answer."""
    found = 0
    for output in outputs:
        prompt = output.prompt_logprobs or ()
        found += sum(len(position or ()) for position in prompt)
        found += _OF_A_CHOICE * len(output.outputs)
        for choice in output.outputs:
            if choice.logprobs:
                found += len(choice.logprobs) * len(choice.logprobs[0] or ())
    return found > LONG


async def built_in_thread(build: Callable[[], T], used: Iterable[Any] = ()) -> T:
    """Return the result of ``build``, called in a thread with the current context.

    Args:
        build: Builds an answer.
        used: vLLM's request outputs that only ``build`` needs; their log probabilities are freed.
    """

    def run() -> T:
        built = build()
        for output in used:
            _free(output.prompt_logprobs)
            for choice in output.outputs:
                _free(choice.logprobs)
        return built

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_builder, context.run, run)


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits.

    Raises:
        RuntimeError: The coroutine waits, so this version of vLLM is not supported.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("vLLM waits while it builds an answer; this version is not supported")


async def replayed(outputs: Iterable[T]) -> AsyncGenerator[T]:
    """Yield outputs that have already been received."""
    for output in outputs:
        yield output


async def received(outputs: AsyncIterator[T]) -> list[T]:
    """Collect all outputs of a request."""
    return [output async for output in outputs]


def is_long(answer: BaseModel) -> bool:
    """Return whether an answer has a long list."""
    return next(_long_lists(answer, ()), None) is not None


def free(answer: BaseModel) -> None:
    """Empty the long lists of an answer, in slices."""
    for _, _, _, values in list(_long_lists(answer, ())):
        _free(values)


async def encoded(
    answer: BaseModel, turns: TaskTurns, options: dict[str, Any], *, last: bool
) -> bytes:
    """Return the JSON of a long answer, encoded in slices.

    Args:
        answer: vLLM's answer.
        turns: Shared by all requests with long steps.
        options: Arguments of ``model_dump``.
        last: Whether the answer is not used again; its long lists are freed.
    """
    lists = list(_long_lists(answer, ()))
    for _, owner, name, _ in lists:
        setattr(owner, name, [])
    content = answer.model_dump(**options)
    if not last:
        for _, owner, name, values in lists:
            setattr(owner, name, values)
    for path, _, _, values in lists:
        *parents, field = path
        target: Any = content
        for each in parents:
            target = target[each]
        parts = []
        for part in _encoded(values, last=last):
            await turns.turn()
            parts.append(part)
        target[field] = msgspec.Raw(b"[" + b",".join(parts) + b"]")
    await turns.turn()
    return msgspec.json.encode(content)


async def response_in_parts(long: LongAnswerError, turns: TaskTurns) -> StreamingResponse:
    """Return the JSON response of a long answer."""
    body = memoryview(await encoded(long.answer, turns, long.options, last=True))
    return StreamingResponse(
        (bytes(body[begin : begin + _SENT]) for begin in range(0, len(body), _SENT)),
        media_type="application/json",
        headers={"content-length": str(len(body))},
    )


def _free(values: Any) -> None:
    """Empty a list in slices, because freeing it in one step would hold the interpreter."""
    while isinstance(values, list) and values:
        del values[-_FREED:]


def _long_lists(
    value: BaseModel, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], BaseModel, str, list[Any]]]:
    """Yield path, owner, name and values of each list that takes a long time to encode."""
    for name in getattr(type(value), "model_fields", ()):
        found = getattr(value, name, None)
        if isinstance(found, BaseModel):
            yield from _long_lists(found, (*path, name))
        elif isinstance(found, list) and found:
            if len(found) * _weight(found) > LONG:
                yield (*path, name), value, name, found
                continue
            for index, item in enumerate(found):
                if not isinstance(item, BaseModel):
                    break
                yield from _long_lists(item, (*path, name, index))


def _weight(values: list[Any]) -> int:
    """Return the approximate number of values in one item of a list."""
    last = values[-1]  # the first position of a prompt has no log probabilities
    if isinstance(last, dict):
        return len(last) + 1
    return len(getattr(last, "top_logprobs", None) or ()) + 1


def _encoded(values: list[Any], *, last: bool) -> Iterator[bytes]:
    """Yield the JSON of the items of a list, in slices, and free them if this is their last use."""
    size = max(_SLICE // _weight(values), 1)
    for begin in range(0, len(values), size):
        items = values[begin : begin + size]
        if last:
            values[begin : begin + size] = [None] * len(items)
        yield to_json(items, inf_nan_mode="null")[1:-1]
