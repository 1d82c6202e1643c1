"""Mixins for the handlers of vLLM's endpoints: error bodies and fields of chat completions."""

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
"""Message fields that are omitted instead of null."""


class OurErrors:
    """Mixin that builds error bodies for the errors of ``serving.errors``."""

    create_error_response = staticmethod(response_to)


def retry_after_fields(error: ErrorInfo) -> dict[str, Any]:
    """Return ``{"retry_after": seconds}`` for an error that has the field, else ``{}``."""
    known = getattr(error, "retry_after", None)
    return {} if known is None else {"retry_after": known}


class ReasoningContent:
    """Mixin that adds ``reasoning_content`` to messages, with the same value as ``reasoning``.

    DeepSeek's API and its clients use the name ``reasoning_content``; vLLM 0.32 emits only
    ``reasoning`` (and accepts both). The second name is an extra field of the message object, so
    chunks are not serialized twice.
    """

    def _create_chat_message(self, *args: Any, **kwargs: Any) -> ChatMessage:
        message: ChatMessage = super()._create_chat_message(*args, **kwargs)  # type: ignore[misc]
        if message.reasoning is not None:
            message.reasoning_content = message.reasoning
        return message


class ChatShape:
    """Mixin that adds fields that are always present in OpenAI's chat completions."""

    def _create_chat_logprobs(self, *args: Any, **kwargs: Any) -> Any:
        logprobs = super()._create_chat_logprobs(*args, **kwargs)  # type: ignore[misc]
        logprobs.refusal = None
        return logprobs


class ChatAnswer(ChatCompletionResponse):
    """A complete chat completion that omits the null fields of ``_NEVER_NULL``."""

    def model_dump(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON content of the completion."""
        content: dict[str, Any] = super().model_dump(*args, **kwargs)
        for choice in content["choices"]:
            for name in _NEVER_NULL:
                if choice["message"].get(name, ...) is None:
                    del choice["message"][name]
        return content


class WholeChat:
    """Mixin that aligns finish reasons and reasoning of complete answers with streamed ones."""

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
    """Yield ``outputs`` and record the finish reason of each choice in ``reasons``."""
    async for output in outputs:
        for choice in output.outputs:
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
        yield output
