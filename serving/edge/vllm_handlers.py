"""What we add to vLLM's serving objects: our errors, our parser, answers that keep their word.

vLLM builds the objects itself and offers no factory, so ``adopt`` gives the finished ones a
subclass of their own class. Nothing of vLLM's modules is changed; what is overridden is
methods that vLLM's own subclasses (Cohere, Anthropic) override as well.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal

import msgspec
from openai.types.responses import ResponseErrorEvent
from starlette.datastructures import State
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.outputs import RequestOutput

from serving.edge.anthropic_errors import error_type
from serving.edge.error_body import reason_of, response_of, response_to
from serving.edge.light_chunks import ChatChoice, ChatChunk, TextChoice, TextChunk, with_names
from serving.edge.running_usage import with_cached_tokens
from serving.errors import ServingError
from serving.fleet.caller import caller


class _OurErrors:
    """Mixin: error bodies that know ``serving.errors``."""

    create_error_response = staticmethod(response_to)


class _ReasoningContent:
    """Mixin: messages carry ``reasoning_content`` beside ``reasoning``.

    DeepSeek's API and the clients written for it call the field ``reasoning_content``; vLLM
    0.32 emits only ``reasoning`` (and reads both). The second name is an extra field of the
    message object, so that it costs no second serialization of a chunk.
    """

    def _create_chat_message(self, *args: Any, **kwargs: Any) -> ChatMessage:
        message: ChatMessage = super()._create_chat_message(*args, **kwargs)  # type: ignore[misc]
        if message.reasoning is not None:
            message.reasoning_content = message.reasoning
        return message


class _WholeChat:
    """Mixin: what a chat answer says of itself is true, streamed or not."""

    def _engine_reasoning_kwargs(
        self,
        request: ChatCompletionRequest,
        parser: Any,
        chat_template_kwargs: dict[str, Any],
        prompt_token_ids: list[int] | None,
    ) -> dict[str, Any]:
        """Let a grammar begin after the reasoning, also where that is not shown.

        vLLM lets it begin at once with ``include_reasoning: false``, and then takes the whole
        answer for reasoning.
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
        """Answer in one piece; ``tool_calls`` ends an answer that has some and is not cut off."""
        reasons: dict[int, str | None] = {}
        answer = await super().chat_completion_full_generator(  # type: ignore[misc]
            request, _noting_reasons(result_generator, reasons), *args, **kwargs
        )
        if isinstance(answer, ChatCompletionResponse):
            for choice in answer.choices:
                ended = reasons.get(choice.index)
                if choice.finish_reason == "tool_calls" and (
                    ended != "stop" or not choice.message.tool_calls
                ):
                    choice.finish_reason = ended or "stop"
        return answer


async def _noting_reasons(
    outputs: AsyncIterator[RequestOutput], reasons: dict[int, str | None]
) -> AsyncGenerator[RequestOutput]:
    """Pass outputs on; put why each choice ended into ``reasons``."""
    async for output in outputs:
        for choice in output.outputs:
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
        yield output


class ChatHandler(_OurErrors, _ReasoningContent, _WholeChat, OpenAIServingChat):
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
        return with_cached_tokens(stream, request, *args, **kwargs)


class ChatBatchHandler(_OurErrors, OpenAIServingChatBatch):
    """/v1/chat/completions/batch."""


class CompletionHandler(_OurErrors, OpenAIServingCompletion):
    """/v1/completions."""

    _light_stream = with_names(
        OpenAIServingCompletion.completion_stream_generator,
        CompletionStreamResponse=TextChunk,
        CompletionResponseStreamChoice=TextChoice,
    )

    def completion_stream_generator(
        self, request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer."""
        return with_cached_tokens(self._light_stream, request, *args, **kwargs)


class TokenizationHandler(_OurErrors, ServingTokenization):
    """/tokenize and /detokenize."""


def _retry_after(error: ErrorInfo) -> dict[str, Any]:
    known = getattr(error, "retry_after", None)
    return {} if known is None else {"retry_after": known}


_BEFORE_ANY_OUTPUT = ("response.created", "response.in_progress")


class _ResponseIncompleteEvent(ResponseCompletedEvent):
    type: Literal["response.incomplete"]


def _truthful(event: Any) -> Any:
    """Return the last event of a response under the name that its status has."""
    if event.type != "response.completed" or event.response.status != "incomplete":
        return event
    return _ResponseIncompleteEvent(
        type="response.incomplete", sequence_number=event.sequence_number, response=event.response
    )


class ResponsesHandler(_OurErrors, OpenAIServingResponses):
    """/v1/responses; an error in a stream is an ``error`` event, not a cut connection.

    The two events that say that there will be an answer wait for its beginning: while nothing
    is out, a refused request still gets its proper status. Where something is out (a comment
    that keeps the connection), they come before the error.
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
                for passed in (*held, _truthful(event)):
                    number += 1
                    yield passed
                held.clear()
        except Exception as error:  # noqa: BLE001  the last stop before the client
            if caller().journal.responded:
                for passed in held:
                    number += 1
                    yield passed
            body = response_of(error).error
            yield ResponseErrorEvent(
                type="error",
                code=reason_of(body),
                message=body.message,
                param=body.param,
                sequence_number=number,
                **_retry_after(body),
            )


class MessagesHandler(_OurErrors, _WholeChat, AnthropicServingMessages):
    """/v1/messages; errors keep their status, in streams they are ``error`` events."""

    @classmethod
    def _handle_thinking(
        cls, req: ChatCompletionRequest, anthropic_request: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Turn thinking off where the template can, and hide it where it cannot."""
        super()._handle_thinking(req, anthropic_request, *args, **kwargs)
        thinking = anthropic_request.thinking
        if thinking is not None and thinking.type == "disabled":
            req.include_reasoning = False

    def messages_full_converter(self, generator: ChatCompletionResponse) -> Any:
        """Turn a chat answer into a message; a call that is cut off has no input to show."""
        for choice in generator.choices:
            choice.message.tool_calls = [
                call for call in choice.message.tool_calls if _is_object(call.function.arguments)
            ]
        return super().messages_full_converter(generator)

    async def create_messages(self, *args: Any, **kwargs: Any) -> Any:
        """Answer, or return an error body: vLLM's route would make any exception a 500."""
        try:
            return await super().create_messages(*args, **kwargs)
        except (ServingError, TypeError, UnicodeEncodeError) as error:
            return response_of(error)

    async def count_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Count, or return an error body."""
        try:
            return await super().count_tokens(*args, **kwargs)
        except (ServingError, TypeError, UnicodeEncodeError) as error:
            return response_of(error)

    async def message_stream_converter(self, generator: AsyncIterator[str]) -> AsyncGenerator[str]:
        """Turn chat chunks into Anthropic events, errors among them."""
        failed: list[ErrorResponse] = []
        async for event in super().message_stream_converter(_until_error(generator, failed)):
            yield event
        if failed:
            error = {
                "type": error_type(failed[0].error.code),
                "message": failed[0].error.message,
                "reason": reason_of(failed[0].error),
                **_retry_after(failed[0].error),
            }
            data = msgspec.json.encode({"type": "error", "error": error}).decode()
            yield f"event: error\ndata: {data}\n\n"


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


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
