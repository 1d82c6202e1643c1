"""Faster chunk classes for vLLM's stream generators.

vLLM creates, validates and serializes one or two pydantic objects per token, which takes a fifth of
the router's CPU time per streamed token. This module runs copies of vLLM's generator functions in
which the class names refer to msgspec structs that serialize to the same bytes (compared in
tests/unit/vllm_adapter/test_fast_chunks.py). vLLM's modules are not modified, and vLLM's code still
determines the contents of chunks.
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


class _FastChunk(msgspec.Struct):
    """Serializes only fields that were set, like pydantic with ``exclude_unset``."""

    pydantic_type: ClassVar[type[BaseModel]]
    """The vLLM class that this class replaces."""

    def model_dump_json(self, *, exclude_unset: bool = False, exclude_none: bool = False) -> str:
        """Return the same JSON as vLLM's class."""
        if exclude_unset and not exclude_none:
            return _encoder.encode(self).decode()
        return self.to_pydantic().model_dump_json(
            exclude_unset=exclude_unset, exclude_none=exclude_none
        )

    def to_pydantic(self) -> BaseModel:
        """Convert to an instance of vLLM's class."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return self.pydantic_type(
            **{
                name: [
                    item.to_pydantic() if isinstance(item, _FastChunk) else item for item in value
                ]
                if isinstance(value, list)
                else value
                for name, value in given.items()
                if value is not UNSET
            }
        )


class TextChoice(_FastChunk):
    """Replaces ``CompletionResponseStreamChoice``."""

    pydantic_type = CompletionResponseStreamChoice
    index: int
    text: str
    logprobs: Any = UNSET
    finish_reason: Any = UNSET
    stop_reason: Any = UNSET
    prompt_token_ids: Any = UNSET
    token_ids: Any = UNSET


class TextChunk(_FastChunk):
    """Replaces ``CompletionStreamResponse``."""

    pydantic_type = CompletionStreamResponse
    id: Any = UNSET
    object: Any = UNSET
    created: Any = UNSET
    model: Any = UNSET
    choices: list[Any] = []
    usage: Any = UNSET
    system_fingerprint: Any = UNSET
    metrics: Any = UNSET


class ChatChoice(_FastChunk):
    """Replaces ``ChatCompletionResponseStreamChoice``."""

    pydantic_type = ChatCompletionResponseStreamChoice
    index: int
    delta: Any
    logprobs: Any = UNSET
    finish_reason: Any = UNSET
    stop_reason: Any = UNSET
    token_ids: Any = UNSET


class ChatChunk(_FastChunk):
    """Replaces ``ChatCompletionStreamResponse``."""

    pydantic_type = ChatCompletionStreamResponse
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


def _encode_pydantic(value: Any) -> msgspec.Raw:
    """Serialize pydantic objects in a chunk: a parser's delta, usage, log probabilities."""
    if isinstance(value, BaseModel):
        return msgspec.Raw(value.model_dump_json(exclude_unset=True).encode())
    raise NotImplementedError(f"cannot serialize {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_encode_pydantic)


def with_names(function: FunctionT, **names: Any) -> FunctionT:
    """Return a copy of a function in which some global names refer to other objects.

    Args:
        function: A plain Python function.
        names: Replacement objects, by the global name that the function uses.

    Raises:
        TypeError: ``function`` is not a plain function or does not use one of the names, so this
            version of vLLM is not supported.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"{function!r} is not a Python function")
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
