"""What we add to vLLM's serving objects: our errors, and ``reasoning_content``.

vLLM builds the objects itself and offers no factory, so ``adopt`` gives the finished ones a
subclass of their own class. Nothing of vLLM's modules is changed; what is overridden is
methods that vLLM's own subclasses (Cohere, Anthropic) override as well.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from openai.types.responses import ResponseErrorEvent
from starlette.datastructures import State
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatMessage
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

from serving.edge.error_body import reason_of, response_of, response_to
from serving.edge.light_chunks import ChatChoice, ChatChunk, TextChoice, TextChunk, with_names
from serving.edge.tool_stream import CompletedToolCalls
from serving.errors import ServingError


class _OurErrors:
    """Mixin: error bodies that know ``serving.errors``."""

    create_error_response = staticmethod(response_to)


class _ReasoningContent:
    """Mixin: messages carry ``reasoning_content`` beside ``reasoning``, and all of it counts.

    DeepSeek's API and the clients written for it call the field ``reasoning_content``; vLLM
    0.32 emits only ``reasoning`` (and reads both). The second name is an extra field of the
    message object, so that it costs no second serialization of a chunk.
    """

    def _create_chat_message(self, *args: Any, **kwargs: Any) -> ChatMessage:
        message: ChatMessage = super()._create_chat_message(*args, **kwargs)  # type: ignore[misc]
        if message.reasoning is not None:
            message.reasoning_content = message.reasoning
        return message

    def _make_parser(self, *args: Any, **kwargs: Any) -> Any:
        make: Callable[..., Any] = super()._make_parser  # type: ignore[misc]
        parser = make(*args, **kwargs)
        count = parser.count_reasoning_tokens
        parse_delta = CompletedToolCalls(
            parser.parse_delta,
            partial(make, *args, **kwargs),
            enable_auto_tools=getattr(self, "enable_auto_tools", False),
        )
        reasoning_parser = getattr(parser, "reasoning_parser", None)

        def with_reasoning_content(**kwargs: Any) -> DeltaMessage | None:
            delta = parse_delta(**kwargs)
            if delta is not None and delta.reasoning is not None:
                delta.reasoning_content = delta.reasoning
            return delta

        def count_from_the_start(token_ids: Sequence[int]) -> int:
            counted: int = count(_with_start(reasoning_parser, token_ids))
            return counted

        parser.parse_delta = with_reasoning_content
        parser.count_reasoning_tokens = count_from_the_start
        return parser


def _with_start(reasoning_parser: Any, token_ids: Sequence[int]) -> Sequence[int]:
    """Put the start of reasoning back that DeepSeek's template has in the prompt already.

    vLLM counts reasoning tokens between two marks in the output, and finds none there.
    """
    start = getattr(reasoning_parser, "start_token_id", None)
    end = getattr(reasoning_parser, "end_token_id", None)
    if start is None or start in token_ids:
        return token_ids
    unmarked_is_reasoning = isinstance(reasoning_parser, DeepSeekR1ReasoningParser)
    return (start, *token_ids) if unmarked_is_reasoning or end in token_ids else token_ids


class ChatHandler(_OurErrors, _ReasoningContent, OpenAIServingChat):
    """/v1/chat/completions."""

    _light_stream = with_names(
        OpenAIServingChat.chat_completion_stream_generator,
        ChatCompletionStreamResponse=ChatChunk,
        ChatCompletionResponseStreamChoice=ChatChoice,
    )

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer."""
        if request.parallel_tool_calls is False:
            # vLLM picks calls out of its own class of choice.
            stream = super().chat_completion_stream_generator
        else:
            stream = self._light_stream
        events: AsyncGenerator[str, None] = stream(request, *args, **kwargs)
        return events


class ChatBatchHandler(_OurErrors, OpenAIServingChatBatch):
    """/v1/chat/completions/batch."""


class CompletionHandler(_OurErrors, OpenAIServingCompletion):
    """/v1/completions."""

    completion_stream_generator = with_names(
        OpenAIServingCompletion.completion_stream_generator,
        CompletionStreamResponse=TextChunk,
        CompletionResponseStreamChoice=TextChoice,
    )


class TokenizationHandler(_OurErrors, ServingTokenization):
    """/tokenize and /detokenize."""


def _retry_after(error: ErrorInfo) -> dict[str, Any]:
    known = getattr(error, "retry_after", None)
    return {} if known is None else {"retry_after": known}


_BEFORE_ANY_OUTPUT = ("response.created", "response.in_progress")


class ResponsesHandler(_OurErrors, OpenAIServingResponses):
    """/v1/responses; an error in a stream is an ``error`` event, not a cut connection.

    The two events that say that there will be an answer wait for its beginning: while nothing
    is out, a refused request still gets its proper status.
    """

    async def responses_stream_generator(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        """Stream the events of a response."""
        number = 0
        held: list[Any] = []
        try:
            async for event in super().responses_stream_generator(*args, **kwargs):
                if event.type in _BEFORE_ANY_OUTPUT:
                    held.append(event)
                    continue
                for passed in (*held, event):
                    number += 1
                    yield passed
                held.clear()
        except Exception as error:  # noqa: BLE001  the last stop before the client
            body = response_of(error).error
            yield ResponseErrorEvent(
                type="error",
                code=reason_of(body),
                message=body.message,
                param=body.param,
                sequence_number=number,
                **_retry_after(body),
            )


class MessagesHandler(_OurErrors, AnthropicServingMessages):
    """/v1/messages; errors keep their status, in streams they are ``error`` events."""

    async def create_messages(self, *args: Any, **kwargs: Any) -> Any:
        """Answer, or return an error body: vLLM's route would make any exception a 500."""
        try:
            return await super().create_messages(*args, **kwargs)
        except ServingError as error:
            return response_of(error)

    async def count_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Count, or return an error body."""
        try:
            return await super().count_tokens(*args, **kwargs)
        except ServingError as error:
            return response_of(error)

    async def message_stream_converter(self, generator: AsyncIterator[str]) -> AsyncGenerator[str]:
        """Turn chat chunks into Anthropic events, errors among them."""
        failed: list[ErrorResponse] = []
        async for event in super().message_stream_converter(_until_error(generator, failed)):
            yield event
        if failed:
            error = {
                "type": failed[0].error.type,
                "message": failed[0].error.message,
                "reason": reason_of(failed[0].error),
                **_retry_after(failed[0].error),
            }
            data = msgspec.json.encode({"type": "error", "error": error}).decode()
            yield f"event: error\ndata: {data}\n\n"


_ERROR_PREFIX = 'data: {"error":'


async def _until_error(
    chunks: AsyncIterator[str], failed: list[ErrorResponse]
) -> AsyncGenerator[str]:
    """Pass chat chunks on; an error event ends them and is put into ``failed``."""
    async for chunk in chunks:
        if chunk.startswith(_ERROR_PREFIX):
            failed.append(ErrorResponse.model_validate_json(chunk.removeprefix("data: ")))
            return
        yield chunk


_ADOPTED: dict[str, type[Any]] = {
    "openai_serving_chat": ChatHandler,
    "openai_serving_chat_batch": ChatBatchHandler,
    "openai_serving_completion": CompletionHandler,
    "openai_serving_responses": ResponsesHandler,
    "anthropic_serving_messages": MessagesHandler,
    "serving_tokenization": TokenizationHandler,
}


def adopt(state: State) -> None:
    """Give the serving objects that ``init_app_state`` left in ``state`` our subclasses.

    Raises:
        TypeError: vLLM built something else under a name that we rely on.
    """
    for name, handler in _ADOPTED.items():
        serving = getattr(state, name)
        if type(serving) not in handler.__bases__:
            raise TypeError(
                f"vLLM's app state has a {type(serving).__name__} as {name}, which "
                f"{handler.__name__} does not extend; this vLLM version is not supported"
            )
        serving.__class__ = handler
