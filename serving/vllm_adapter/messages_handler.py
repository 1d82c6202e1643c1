"""Handler of /v1/messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import msgspec
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError

from serving.errors import ServingError
from serving.vllm_adapter.anthropic_errors import error_type
from serving.vllm_adapter.error_response import (
    RouterErrors,
    reason_of,
    response_of,
    retry_fields,
)
from serving.vllm_adapter.handlers import ConsistentChat, with_cached_tokens
from serving.vllm_adapter.rendering import MESSAGES


class MessageAnswer(AnthropicMessagesResponse):
    """A complete message, whose JSON has a null ``stop_sequence``, as Anthropic's does."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the JSON content of the message."""
        content: dict[str, Any] = super().model_dump(**options)
        content.setdefault("stop_sequence", None)
        return content


class MessagesHandler(RouterErrors, ConsistentChat, AnthropicServingMessages):
    """/v1/messages. Errors keep their HTTP status; in streams they are sent as ``error`` events."""

    @classmethod
    def _handle_thinking(
        cls, req: ChatCompletionRequest, anthropic_request: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Disable thinking if the chat template supports it; otherwise hide it."""
        super()._handle_thinking(req, anthropic_request, *args, **kwargs)
        thinking = anthropic_request.thinking
        if thinking is not None and thinking.type == "disabled":
            req.include_reasoning = False

    @classmethod
    def _convert_tools(cls, anthropic_request: Any, req: ChatCompletionRequest) -> None:
        """Convert the tools; without tools, do not parse tool calls, as in /v1/chat/completions.

        Raises:
            VLLMValidationError: A tool call is forced, but there are no tools.
        """
        super()._convert_tools(anthropic_request, req)
        if req.tools:
            return
        choice = anthropic_request.tool_choice
        if choice is not None and choice.type in {"any", "tool"}:
            raise VLLMValidationError(
                f"tool_choice {choice.type!r} requires tools, but tools is missing or empty",
                parameter="tool_choice",
            )
        req.tool_choice = "none"

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream chat chunks; the first one already has the cached tokens of the prompt."""
        stream = super().chat_completion_stream_generator
        return with_cached_tokens(stream, request, *args, **kwargs)

    def messages_full_converter(self, generator: ChatCompletionResponse) -> Any:
        """Convert a chat completion to a message, omitting calls with truncated arguments."""
        choice = generator.choices[0]
        message, inputs = choice.message, []
        for call in message.tool_calls:
            # As in streams, where an empty input has no parts and clients read it as ``{}``.
            call.function.arguments = call.function.arguments.strip() or "{}"
            inputs.append(call.function.arguments)
        message.tool_calls = [
            call for call in message.tool_calls if _is_object(call.function.arguments)
        ]
        answer = super().messages_full_converter(generator)
        if (stop := _stop_of(choice.finish_reason, choice.stop_reason, inputs)) is not None:
            reason, sequence = stop
            answer = answer.model_copy(update={"stop_reason": reason, "stop_sequence": sequence})
        answer.__class__ = MessageAnswer
        return answer

    async def create_messages(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an answer or an error body; vLLM's route maps every exception to a 500."""
        try:
            await self._wait_for_turn(request)
            return await super().create_messages(request, *args, **kwargs)
        except (ServingError, TypeError, UnicodeEncodeError) as error:
            return response_of(error)

    async def count_tokens(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the number of tokens or an error body."""
        try:
            await self._wait_for_turn(request)
            return await super().count_tokens(request, *args, **kwargs)
        except (ServingError, TypeError, UnicodeEncodeError) as error:
            return response_of(error)

    async def _wait_for_turn(self, request: Any) -> None:
        """Wait before a long conversation is converted to a chat, which takes milliseconds."""
        contents = (each.content for each in request.messages)
        if sum(1 if isinstance(each, str) else len(each) for each in contents) > MESSAGES:
            client: Any = self.engine_client
            await client.turns.turn()

    async def message_stream_converter(self, generator: AsyncIterator[str]) -> AsyncGenerator[str]:
        """Convert chat chunks to Anthropic's events, including errors."""
        failed: list[ErrorResponse] = []
        blocks = _StreamedBlocks()
        chunks = _until_error(_note_end(generator, blocks), failed)
        async for event in super().message_stream_converter(chunks):
            yield blocks.corrected(event)
        if failed:
            error = {
                "type": error_type(failed[0].error.code),
                "message": failed[0].error.message,
                "reason": reason_of(failed[0].error),
                **retry_fields(failed[0].error),
            }
            data = msgspec.json.encode({"type": "error", "error": error}).decode()
            yield f"event: error\ndata: {data}\n\n"


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


_BLOCK_START = "event: content_block_start"
_BLOCK_DELTA = "event: content_block_delta"
_MESSAGE_DELTA = "event: message_delta"
_THINKING = '"type":"thinking","thinking":""}'
_SIGNED = '"type":"thinking","thinking":"","signature":""}'
"""Anthropic's ThinkingBlock already has a signature in its start event."""
_EMPTY_BLOCK = (
    f"{_BLOCK_START}\n"
    'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    "event: content_block_stop\n"
    'data: {"type":"content_block_stop","index":0}\n\n'
)
"""Block of a streamed message without content. vLLM sends one only in complete messages."""


class _StreamedBlocks:
    """Corrects the events of a streamed message.

    - The stop reason, as in a complete message. Blocks with incomplete input have already been sent
      by then; complete messages omit them.
    - A message without content has one empty text block, as a complete message does.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        """Why the chat ended."""
        self._inputs: list[str] = []
        self._empty = True

    def corrected(self, event: str) -> str:
        """Return the event to send, or several joined ones."""
        if event.startswith(_BLOCK_DELTA):
            if self._inputs and '"input_json_delta"' in event:
                self._inputs[-1] += _data(event)["delta"]["partial_json"]
        elif event.startswith(_BLOCK_START):
            self._empty = False
            if '"type":"tool_use"' in event:
                self._inputs.append("")
            return event.replace(_THINKING, _SIGNED)
        elif event.startswith(_MESSAGE_DELTA):
            stop = _stop_of(self.finish_reason, self.stop_reason, self._inputs)
            if stop is not None:
                content = _data(event)
                content["delta"]["stop_reason"], content["delta"]["stop_sequence"] = stop
                event = f"{_MESSAGE_DELTA}\ndata: {msgspec.json.encode(content).decode()}\n\n"
            return _EMPTY_BLOCK + event if self._empty else event
        return event


def _stop_of(
    finish_reason: str | None, stop_reason: int | str | None, inputs: Sequence[str]
) -> tuple[str, str | None] | None:
    """Return ``stop_reason`` and ``stop_sequence`` of a message, or None if vLLM's are right.

    A stop sequence that cuts off the last call is the reason, even if calls before it are complete.

    Args:
        finish_reason: that of the chat.
        stop_reason: that of the chat: the stop string, the id of a stop token, or None.
        inputs: inputs of the calls, complete or not.
    """
    if finish_reason not in {"stop", "tool_calls"}:
        return None
    complete = [not text.strip() or _is_object(text) for text in inputs]
    if complete and complete[-1]:
        return "tool_use", None
    if isinstance(stop_reason, str):
        return "stop_sequence", stop_reason
    return ("tool_use" if any(complete) else "end_turn"), None


def _data(event: str) -> Any:
    return msgspec.json.decode(event.partition("data: ")[2])


async def _note_end(chunks: AsyncIterator[str], blocks: _StreamedBlocks) -> AsyncGenerator[str]:
    """Yield chat chunks, and note in ``blocks`` why the chat ends."""
    async for chunk in chunks:
        if _FINISHES in chunk:
            for choice in _data(chunk)["choices"]:
                blocks.finish_reason = choice["finish_reason"]
                blocks.stop_reason = choice.get("stop_reason")
        yield chunk


_FINISHES = '"finish_reason":"'
_ERROR_PREFIX = 'data: {"error":'


async def _until_error(
    chunks: AsyncIterator[str], failed: list[ErrorResponse]
) -> AsyncGenerator[str]:
    """Yield chat chunks until an error event, which is appended to ``failed``."""
    async for chunk in chunks:
        if chunk.startswith(_ERROR_PREFIX):
            failed.append(ErrorResponse.model_validate_json(chunk.removeprefix("data: ")))
            return
        yield chunk
