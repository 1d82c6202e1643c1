"""Handler of /v1/messages."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
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
from serving.vllm_adapter.handlers import ConsistentChat
from serving.vllm_adapter.rendering import MESSAGES


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

    def messages_full_converter(self, generator: ChatCompletionResponse) -> Any:
        """Convert a chat completion to a message, omitting calls with truncated arguments."""
        for choice in generator.choices:
            message = choice.message
            for call in message.tool_calls:
                # As in streams, where an empty input has no parts and clients read it as ``{}``.
                call.function.arguments = call.function.arguments.strip() or "{}"
            message.tool_calls = [
                call for call in message.tool_calls if _is_object(call.function.arguments)
            ]
            if choice.finish_reason == "tool_calls" and not message.tool_calls:
                choice.finish_reason = "stop"
        return super().messages_full_converter(generator)

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
        async for event in super().message_stream_converter(_until_error(generator, failed)):
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
_USES_TOOL, _ENDS = '"stop_reason":"tool_use"', '"stop_reason":"end_turn"'
_EMPTY_BLOCK = (
    f"{_BLOCK_START}\n"
    'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    "event: content_block_stop\n"
    'data: {"type":"content_block_stop","index":0}\n\n'
)
"""Block of a streamed message without content. vLLM sends one only in complete messages."""


class _StreamedBlocks:
    """Corrects the events of a streamed message.

    - The stop reason of a message without a complete tool call. Blocks with incomplete input have
      already been sent by then; complete messages omit them.
    - A message without content has one empty text block, as a complete message does.
    """

    def __init__(self) -> None:
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
            if not any(map(_is_input, self._inputs)):
                event = event.replace(_USES_TOOL, _ENDS)
            return _EMPTY_BLOCK + event if self._empty else event
        return event


def _is_input(text: str) -> bool:
    return not text.strip() or _is_object(text)


def _data(event: str) -> Any:
    return msgspec.json.decode(event.partition("data: ")[2])


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
