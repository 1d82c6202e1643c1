"""Subclasses of vLLM's request handlers, with the router's errors and corrected answers.

vLLM has no replaceable factory for its handler objects. ``install_handlers`` therefore changes the
class of the existing objects to a subclass. vLLM's modules are not modified.
"""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import State
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization

from serving.vllm_adapter.answer_mixins import (
    ChatAnswer,
    ChatShape,
    OurErrors,
    ReasoningContent,
    WholeChat,
)
from serving.vllm_adapter.error_response import response_to
from serving.vllm_adapter.fast_chunks import (
    ChatChoice,
    ChatChunk,
    TextChoice,
    TextChunk,
    with_names,
)
from serving.vllm_adapter.messages_handler import MessagesHandler
from serving.vllm_adapter.responses_handler import ResponsesHandler, ResponsesRenderer
from serving.vllm_adapter.running_usage import with_cached_tokens

_NOT_IN_BATCHES = ("stream", "tools")


class ChatHandler(OurErrors, ReasoningContent, ChatShape, WholeChat, OpenAIServingChat):
    """/v1/chat/completions."""

    _fast_stream = with_names(
        OpenAIServingChat.chat_completion_stream_generator,
        ChatCompletionStreamResponse=ChatChunk,
        ChatCompletionResponseStreamChoice=ChatChoice,
    )

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer as server-sent events."""
        if request.parallel_tool_calls is False:
            # vLLM's filter for parallel calls needs vLLM's choice class.
            stream = super().chat_completion_stream_generator
        else:
            stream = self._fast_stream
        return with_cached_tokens(stream, request, *args, **kwargs)


class ChatBatchHandler(OurErrors, ChatShape, OpenAIServingChatBatch):
    """/v1/chat/completions/batch."""

    async def create_batch_chat_completion(
        self, request: BatchChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        """Answer several conversations; reject parameters that vLLM mishandles in batches."""
        extra = request.model_extra or {}
        for name in _NOT_IN_BATCHES:
            # A streamed batch would return only the last token of each answer.
            if extra.get(name):
                return response_to(f"batches of chats have no {name!r}: leave it out", param=name)
        answer = await super().create_batch_chat_completion(request, *args, **kwargs)
        if isinstance(answer, ChatCompletionResponse):
            for choice in answer.choices:
                if choice.message.reasoning is not None:
                    choice.message.reasoning_content = choice.message.reasoning
            answer.__class__ = ChatAnswer
        return answer


class _EchoedChoice(TextChoice):
    """A choice without prompt token ids, which vLLM adds to an echoed prompt only in streams."""

    def __post_init__(self) -> None:
        self.prompt_token_ids = None


class CompletionHandler(OurErrors, OpenAIServingCompletion):
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

    def completion_stream_generator(
        self, request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Stream an answer as server-sent events."""
        hides_prompt = request.echo and not request.return_token_ids
        stream = self._echo_stream if hides_prompt else self._fast_stream
        return with_cached_tokens(stream, request, *args, **kwargs)


class TokenizationHandler(OurErrors, ServingTokenization):
    """/tokenize and /detokenize."""


_HANDLERS: dict[str, type[Any]] = {
    "openai_serving_chat": ChatHandler,
    "openai_serving_chat_batch": ChatBatchHandler,
    "openai_serving_completion": CompletionHandler,
    "openai_serving_responses": ResponsesHandler,
    "anthropic_serving_messages": MessagesHandler,
    "serving_tokenization": TokenizationHandler,
    "online_renderer": ResponsesRenderer,
}


def install_handlers(state: State) -> None:
    """Set the class of the handlers in vLLM's app state to the subclasses of this package.

    Args:
        state: vLLM's app state after ``init_app_state``.

    Raises:
        TypeError: a handler has a class that this package does not extend.
    """
    for name, handler in _HANDLERS.items():
        serving = getattr(state, name)
        if type(serving) not in handler.__bases__:
            raise TypeError(
                f"vLLM's app state has a {type(serving).__name__} as {name}, which "
                f"{handler.__name__} does not extend; this vLLM version is not supported"
            )
        serving.__class__ = handler
