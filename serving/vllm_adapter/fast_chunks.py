"""Cheaper chunks for vLLM's own stream generators.

vLLM builds a pydantic object, or two, for each token, validates it and has it write itself as
JSON: a fifth of what a streamed token costs a router. Here the very same generators run with other
classes under those names: structs that msgspec writes. What they write is the same, byte for byte
(tests/unit/vllm_adapter/test_fast_chunks.py compares them); vLLM's modules are not touched, and
every rule about what is in a chunk stays vLLM's.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from msgspec import UNSET
from pydantic import BaseModel
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class _Light(msgspec.Struct):
    """Writes the fields that were given, in this order; as pydantic's ``exclude_unset``."""

    heavy: ClassVar[type[BaseModel]]
    """vLLM's class, in whose place it stands."""

    def model_dump_json(self, *, exclude_unset: bool = False, exclude_none: bool = False) -> str:
        """Return the JSON that vLLM's class writes."""
        if exclude_unset and not exclude_none:
            return _encoder.encode(self).decode()
        return self.weigh().model_dump_json(exclude_unset=exclude_unset, exclude_none=exclude_none)

    def weigh(self) -> BaseModel:
        """Return the same as an object of vLLM's class."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return self.heavy(
            **{
                name: [item.weigh() if isinstance(item, _Light) else item for item in value]
                if isinstance(value, list)
                else value
                for name, value in given.items()
                if value is not UNSET
            }
        )


class TextChoice(_Light):
    """For ``CompletionResponseStreamChoice``."""

    heavy = CompletionResponseStreamChoice
    index: int
    text: str
    logprobs: Any = UNSET
    finish_reason: Any = UNSET
    stop_reason: Any = UNSET
    prompt_token_ids: Any = UNSET
    token_ids: Any = UNSET


class TextChunk(_Light):
    """For ``CompletionStreamResponse``."""

    heavy = CompletionStreamResponse
    id: Any = UNSET
    object: Any = UNSET
    created: Any = UNSET
    model: Any = UNSET
    choices: list[Any] = []
    usage: Any = UNSET
    system_fingerprint: Any = UNSET
    metrics: Any = UNSET


class ChatChoice(_Light):
    """For ``ChatCompletionResponseStreamChoice``."""

    heavy = ChatCompletionResponseStreamChoice
    index: int
    delta: Any
    logprobs: Any = UNSET
    finish_reason: Any = UNSET
    stop_reason: Any = UNSET
    token_ids: Any = UNSET


class ChatChunk(_Light):
    """For ``ChatCompletionStreamResponse``."""

    heavy = ChatCompletionStreamResponse
    id: Any = UNSET
    object: Any = UNSET
    created: Any = UNSET
    model: Any = UNSET
    choices: list[Any] = []
    usage: Any = UNSET
    system_fingerprint: Any = UNSET
    prompt_token_ids: Any = UNSET
    prompt_text: Any = UNSET
    metrics: Any = UNSET


def _written_by_itself(value: Any) -> msgspec.Raw:
    """Let pydantic write what is vLLM's own: a delta of a parser, usage, log-probabilities."""
    if isinstance(value, BaseModel):
        return msgspec.Raw(value.model_dump_json(exclude_unset=True).encode())
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_written_by_itself)


def with_names(function: FunctionT, **names: Any) -> FunctionT:
    """Return the function with other objects under some of its module's names.

    Raises:
        TypeError: it is no plain function, or does not use one of the names: this vLLM is another.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"{function!r} is no function of Python's")
    if missing := names.keys() - set(function.__code__.co_names):
        raise TypeError(f"{function.__qualname__} does not use {', '.join(sorted(missing))}")
    made = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__doc__ = function.__doc__
    return cast("FunctionT", made)
