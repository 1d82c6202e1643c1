"""Subclasses of vLLM's handlers for chats and completions.

They add the router's errors, corrected answers, and generators that write chunks more cheaply.
``app`` sets them as the class of vLLM's handler objects.
"""

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.outputs import RequestOutput

from serving.errors import InvalidRequest
from serving.request_context import current_context
from serving.vllm_adapter.cut_calls import is_cut, without_cut_calls
from serving.vllm_adapter.error_response import RouterErrors, response_to
from serving.vllm_adapter.fast_chunks import (
    ChatChoice,
    ChatChunk,
    TextChoice,
    TextChunk,
    with_names,
)
from serving.vllm_adapter.long_answers import (
    BuildLaterError,
    MaybeLong,
    built_in_thread,
    finished,
    received,
    replayed,
    takes_long,
)
from serving.vllm_adapter.reasoning_policy import limit_chat, refuse_raw_text

_OMITTED_IF_NULL = ("annotations", "function_call")
"""Message fields that are omitted instead of null."""
_NOT_IN_BATCHES = ("stream", "tools")
_MAX_BATCH = 512
"""Maximum number of conversations in a chat batch; processing this many takes 30 ms."""
_DATA = "data: "
_END = "\n\n"


class ChatAnswer(MaybeLong, ChatCompletionResponse):
    """A complete chat completion that omits the null fields of ``_OMITTED_IF_NULL``."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the JSON content of the completion."""
        content = super().model_dump(**options)
        for choice in content["choices"]:
            for name in _OMITTED_IF_NULL:
                if choice["message"].get(name, ...) is None:
                    del choice["message"][name]
        return content


class OpenAIChatFields:
    """Mixin that adds fields that are always present in OpenAI's chat completions.

    It also applies LoRA adapters only to requests that name them.
    """

    def _get_active_default_mm_loras(self, request: Any) -> None:
        """Return None: an adapter applies only to requests that name it.

        vLLM applies an adapter that is named like a type of content, such as ``text``, to all
        requests with content of that type.
        """
        del request

    def _create_chat_logprobs(self, *args: Any, **kwargs: Any) -> Any:
        logprobs = super()._create_chat_logprobs(*args, **kwargs)  # type: ignore[misc]
        logprobs.refusal = None
        return logprobs


class ConsistentChat:
    """Mixin that aligns finish reasons and reasoning of complete answers with streamed ones."""

    def create_chat_completion(
        self, request: ChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        """Return a coroutine that answers a request within the limits of its API key.

        Raises:
            PermissionDenied: The key does not permit a field of the request.
        """
        if (policy := current_context().reasoning) is not None:
            limit_chat(policy, request)
        return super().create_chat_completion(request, *args, **kwargs)  # type: ignore[misc]

    def _engine_reasoning_kwargs(
        self,
        request: ChatCompletionRequest,
        parser: Any,
        chat_template_kwargs: dict[str, Any],
        prompt_token_ids: list[int] | None,
    ) -> dict[str, Any]:
        """Apply the request's grammar after the reasoning, even if the reasoning is hidden.

        With ``include_reasoning: false``, vLLM applies it from the first token, and then treats the
        whole answer as reasoning.
        """
        shown = request
        if not request.include_reasoning and parser is not None and parser.reasoning_parser:
            shown = request.model_copy(update={"include_reasoning": True})
        arguments: dict[str, Any] = super()._engine_reasoning_kwargs(  # type: ignore[misc]
            shown, parser, chat_template_kwargs, prompt_token_ids
        )
        return arguments

    async def chat_completion_full_generator(
        self, request: ChatCompletionRequest, result_generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete answer.

        The finish reason is ``tool_calls`` only if it has tool calls and was not cut off.
        """
        reasons: dict[int, str | None] = {}
        outputs = await received(_record_reasons(result_generator, reasons))
        build = super().chat_completion_full_generator(  # type: ignore[misc]
            request, replayed(outputs), *args, **kwargs
        )
        if takes_long(outputs):
            answer = await built_in_thread(functools.partial(finished, build), outputs)
        else:
            answer = await build
        if isinstance(answer, ChatCompletionResponse):
            for choice in answer.choices:
                ended = reasons.get(choice.index)
                calls = choice.message.tool_calls
                if choice.finish_reason == "tool_calls" and (
                    ended != "stop"
                    or not calls
                    or is_cut(choice.stop_reason, calls[-1].function.arguments)
                ):
                    choice.finish_reason = ended or "stop"
            answer.__class__ = ChatAnswer
        return answer


async def _record_reasons(
    outputs: AsyncIterator[RequestOutput], reasons: dict[int, str | None]
) -> AsyncGenerator[RequestOutput]:
    """Yield ``outputs`` and record the finish reason of each choice in ``reasons``."""
    async for output in outputs:
        for choice in output.outputs:
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
        yield output


class ChatHandler(RouterErrors, OpenAIChatFields, ConsistentChat, OpenAIServingChat):
    """/v1/chat/completions.

    Adds ``reasoning_content`` to messages, with the same value as ``reasoning``. DeepSeek's API and
    its clients use this name; vLLM 0.32 emits only ``reasoning`` (and accepts both). The added name
    is an extra field of the message object, so chunks are not serialized twice.
    """

    _fast_stream = with_names(
        OpenAIServingChat.chat_completion_stream_generator,
        ChatCompletionStreamResponse=ChatChunk,
        ChatCompletionResponseStreamChoice=ChatChoice,
    )

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer as server-sent events."""
        if request.echo:
            args = tuple(_with_text(arg) if isinstance(arg, list) else arg for arg in args)
        if request.parallel_tool_calls is False:
            # vLLM's filter for parallel calls needs vLLM's choice class.
            stream = super().chat_completion_stream_generator
        else:
            stream = self._fast_stream
        events = with_cached_tokens(stream, request, *args, **kwargs)
        return without_cut_calls(events) if request.tools and request.stop else events

    def _create_chat_message(self, *args: Any, **kwargs: Any) -> ChatMessage:
        message: ChatMessage = super()._create_chat_message(*args, **kwargs)
        if message.reasoning is not None:
            message.reasoning_content = message.reasoning
        return message


def _with_text(conversation: list[Any]) -> list[Any]:
    """Return a conversation whose last message has its parts joined, as in a complete answer.

    A stream that echoes the last message cannot send a list.
    """
    if not conversation or not isinstance(parts := conversation[-1].get("content"), list):
        return conversation
    text = "\n".join(part["text"] for part in parts)
    return [*conversation[:-1], {**conversation[-1], "content": text}]


class ChatBatchHandler(RouterErrors, OpenAIChatFields, OpenAIServingChatBatch):
    """/v1/chat/completions/batch."""

    async def create_batch_chat_completion(
        self, request: BatchChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        """Answer several conversations; reject parameters that vLLM mishandles in batches.

        Raises:
            InvalidRequest: The batch is too large.
            PermissionDenied: The key does not permit a field of the request.
        """
        if (policy := current_context().reasoning) is not None:
            limit_chat(policy, request)
        if len(request.messages) > _MAX_BATCH:
            # vLLM starts all of them in one event-loop iteration, and collects answers in another.
            raise InvalidRequest(f"a chat batch may have at most {_MAX_BATCH} conversations")
        extra = request.model_extra or {}
        for name in _NOT_IN_BATCHES:
            # A streamed batch would return only the last token of each answer.
            if extra.get(name):
                return response_to(f"{name!r} is not supported in chat batches", param=name)
        answer = await super().create_batch_chat_completion(request, *args, **kwargs)
        if isinstance(answer, ChatCompletionResponse):
            hides = not getattr(request, "include_reasoning", True)
            for choice in answer.choices:
                if choice.message.reasoning is not None:
                    choice.message.reasoning_content = choice.message.reasoning
                if hides:
                    # As in chats: they would show the reasoning.
                    choice.logprobs = choice.token_ids = None
            answer.__class__ = ChatAnswer
        return answer


class _EchoedChoice(TextChoice):
    """A choice without prompt token ids, which vLLM adds to an echoed prompt only in streams."""

    def __post_init__(self) -> None:
        self.prompt_token_ids = None


class TextAnswer(MaybeLong, CompletionResponse):
    """A complete text completion."""


class CompletionHandler(RouterErrors, OpenAIServingCompletion):
    """/v1/completions."""

    _fast_stream = with_names(
        OpenAIServingCompletion.completion_stream_generator,
        CompletionStreamResponse=TextChunk,
        CompletionResponseStreamChoice=TextChoice,
    )
    _echo_stream = with_names(
        OpenAIServingCompletion.completion_stream_generator,
        CompletionStreamResponse=TextChunk,
        CompletionResponseStreamChoice=_EchoedChoice,
    )

    async def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a request; long answers are built in a thread.

        Raises:
            PermissionDenied: The key hides reasoning.
        """
        context = current_context()
        context.record.raw_text = True
        if context.reasoning is not None:
            refuse_raw_text(context.reasoning)
        try:
            answer = await super().create_completion(*args, **kwargs)
        except BuildLaterError as later:
            answer = await built_in_thread(later.build, later.outputs)
        if isinstance(answer, CompletionResponse):
            answer.__class__ = TextAnswer
        return answer

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        """Return a complete answer.

        Raises:
            BuildLaterError: The answer is long; caught by ``create_completion``.
        """
        build = functools.partial(
            super().request_output_to_completion_response, final_res_batch, *args, **kwargs
        )
        if takes_long(final_res_batch):
            raise BuildLaterError(build, final_res_batch)
        return build()

    def completion_stream_generator(
        self, request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer as server-sent events."""
        hides_prompt = request.echo and not request.return_token_ids
        stream = self._echo_stream if hides_prompt else self._fast_stream
        return with_cached_tokens(stream, request, *args, **kwargs)


def with_cached_tokens(
    stream: Callable[..., AsyncGenerator[str, None]],
    request: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncGenerator[str, None]:
    """Return the events of a stream, with the number of cached prompt tokens in every usage.

    vLLM 0.32 reports it only in the final usage. Streams without
    ``stream_options.continuous_usage_stats`` are unchanged.

    Args:
        stream: vLLM's stream generator, a bound method.
        request: The request, the first argument of ``stream``.
        args: Further arguments of ``stream``, including the asynchronous iterator over the outputs.
        kwargs: Keyword arguments of ``stream``.
    """
    options = request.stream_options
    if not (options and options.include_usage and options.continuous_usage_stats):
        return stream(request, *args, **kwargs)
    seen: dict[str, int] = {}
    recorded = [
        _record_cached_tokens(arg, seen) if hasattr(arg, "__aiter__") else arg for arg in args
    ]
    return _add_cached_tokens(stream(request, *recorded, **kwargs), seen)


async def _record_cached_tokens(
    outputs: AsyncIterator[Any], seen: dict[str, int]
) -> AsyncGenerator[Any]:
    async for item in outputs:
        # /v1/completions yields pairs of a prompt index and an output.
        output = item[1] if isinstance(item, tuple) else item
        if "cached_tokens" not in seen and output.num_cached_tokens is not None:
            seen["cached_tokens"] = output.num_cached_tokens
        yield item


async def _add_cached_tokens(
    events: AsyncGenerator[str, None], seen: dict[str, int]
) -> AsyncGenerator[str, None]:
    async for event in events:
        yield _with_details(event, seen) if seen and '"usage":{' in event else event


def _with_details(event: str, seen: dict[str, int]) -> str:
    chunk = msgspec.json.decode(event.removeprefix(_DATA))
    usage = chunk.get("usage") if isinstance(chunk, dict) else None
    if not isinstance(usage, dict) or usage.get("prompt_tokens_details"):
        return event
    usage["prompt_tokens_details"] = dict(seen)
    return f"{_DATA}{msgspec.json.encode(chunk).decode()}{_END}"
