"""What our handlers of vLLM's endpoints have in common: errors, and the shape of chat answers."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
)
from vllm.entrypoints.serve.engine.protocol import ErrorInfo
from vllm.outputs import RequestOutput

from serving.vllm_adapter.error_response import response_to

_NEVER_NULL = ("annotations", "function_call")
"""Fields of a message that are missing where there is nothing to say."""


class OurErrors:
    """Mixin: error bodies that know ``serving.errors``."""

    create_error_response = staticmethod(response_to)


def retry_after_fields(error: ErrorInfo) -> dict[str, Any]:
    """Return when to come back (``retry_after``, seconds), where that is known."""
    known = getattr(error, "retry_after", None)
    return {} if known is None else {"retry_after": known}


class ReasoningContent:
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


class ChatShape:
    """Mixin: fields of chat answers that OpenAI's API always has, and no null where it has none."""

    def _create_chat_logprobs(self, *args: Any, **kwargs: Any) -> Any:
        logprobs = super()._create_chat_logprobs(*args, **kwargs)  # type: ignore[misc]
        logprobs.refusal = None
        return logprobs


class ChatAnswer(ChatCompletionResponse):
    """A whole chat answer as it is written."""

    def model_dump(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON content."""
        content: dict[str, Any] = super().model_dump(*args, **kwargs)
        for choice in content["choices"]:
            for name in _NEVER_NULL:
                if choice["message"].get(name, ...) is None:
                    del choice["message"][name]
        return content


class WholeChat:
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
            answer.__class__ = ChatAnswer
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
