"""Handler of /v1/responses."""

import functools
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from openai.types.responses import (
    ResponseErrorEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseTextConfig,
)
from openai.types.shared import ResponseFormatText
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.renderers.online_renderer import OnlineRenderer

from serving.errors import InvalidRequest
from serving.request_context import current_context
from serving.vllm_adapter.error_response import (
    UNREADABLE,
    RouterErrors,
    reason_of,
    response_of,
    retry_fields,
)
from serving.vllm_adapter.fast_chunks import with_names
from serving.vllm_adapter.long_answers import (
    MaybeLong,
    built_in_thread,
    encoded,
    finished,
    is_long,
    received,
    replayed,
    takes_long,
)
from serving.vllm_adapter.reasoning_policy import limit_response
from serving.vllm_adapter.response_logprobs import StreamedLogprobs, text_range


def _input_messages(**given: Any) -> Any:
    """Convert the input items of a request to chat messages.

    vLLM accesses the first part of an item without checking that it has one.

    Raises:
        InvalidRequest: An item cannot be read.
    """
    try:
        return construct_input_messages(**given)
    except (LookupError, AttributeError) as error:
        raise InvalidRequest(UNREADABLE) from error


class ResponsesRenderer(OnlineRenderer):
    """vLLM's renderer, but raises ``InvalidRequest`` for unreadable input items."""

    render_responses = with_names(
        OnlineRenderer.render_responses, construct_input_messages=_input_messages
    )


def _shaped(response: Any) -> Any:
    """Set fields that are always present in OpenAI's responses."""
    if response.text is None:
        response.text = ResponseTextConfig(format=ResponseFormatText(type="text"))
    response.error = None
    for item in response.output:
        _shape_item(item)
    return response


def _shape_item(item: Any) -> None:
    """Replace nulls that never occur in OpenAI's items with empty lists."""
    if item.type == "reasoning" and item.content is None:
        item.content = []
    if item.type == "message":
        for part in item.content:
            _shape_part(part)


def _shape_part(part: Any) -> None:
    if part.type == "output_text" and part.logprobs is None:
        part.logprobs = []


def _shape_event(event: Any) -> None:
    if (response := getattr(event, "response", None)) is not None:
        _shaped(response)
    if (item := getattr(event, "item", None)) is not None:
        _shape_item(item)
    if (part := getattr(event, "part", None)) is not None:
        _shape_part(part)


def _record_reasoning(response: Any) -> None:
    """Report the reasoning tokens of a response for the ledger."""
    if response.usage is not None:
        details = response.usage.output_tokens_details
        current_context().record.reasoning_tokens = details.reasoning_tokens


_LAST = ("response.completed", "response.incomplete")
_BEFORE_ANY_OUTPUT = ("response.created", "response.in_progress")


class _ResponseIncompleteEvent(ResponseCompletedEvent):
    type: Literal["response.incomplete"]


def _with_final_name(event: Any) -> Any:
    """Return the event, renamed to ``response.incomplete`` if the response is incomplete."""
    if event.type != "response.completed" or event.response.status != "incomplete":
        return event
    return _ResponseIncompleteEvent(
        type="response.incomplete", sequence_number=event.sequence_number, response=event.response
    )


class ResponseAnswer(MaybeLong, ResponsesResponse):
    """A complete response."""


class _EncodedEvent:
    """An event whose JSON is already encoded."""

    def __init__(self, kind: str, text: str) -> None:
        self.type = kind
        self._text = text

    def model_dump_json(self, **_options: Any) -> str:
        """Return the JSON, as a pydantic object does."""
        return self._text


class ResponsesHandler(RouterErrors, OpenAIServingResponses):
    """/v1/responses. An error in a stream is sent as an ``error`` event; vLLM disconnects.

    The first two events of a stream are held back until the answer begins, so that a request that
    is rejected earlier fails with its HTTP status. If part of the response has already been sent (a
    keep-alive comment), the held events are sent before the error.
    """

    async def create_responses(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer a request within the limits of its API key.

        Raises:
            PermissionDenied: The key does not permit a field of the request.
        """
        if (policy := current_context().reasoning) is not None:
            limit_response(policy, request)
        if not request.include_reasoning:
            # Response messages contain the whole output.
            request = request.model_copy(update={"enable_response_messages": False})
        return await super().create_responses(request, *args, **kwargs)

    def _make_response_output_items(
        self, request: Any, final_output: Any, tokenizer: Any, parser: Any = None
    ) -> Any:
        """Return the items of a complete response.

        Reasoning is marked as completed, as in streams. Text has the log probabilities of its own
        tokens, whereas vLLM attaches those of all tokens.
        """
        items = super()._make_response_output_items(request, final_output, tokenizer, parser)
        for item in items:
            if isinstance(item, ResponseReasoningItem) and item.status is None:
                item.status = "completed"
            for part in item.content if isinstance(item, ResponseOutputMessage) else ():
                if isinstance(part, ResponseOutputText) and part.logprobs:
                    tokens = text_range(parser, request, final_output.token_ids)
                    part.logprobs = part.logprobs[tokens]
        return items

    async def _process_simple_streaming_events(
        self, request: Any, params: Any, contexts: Any, context: Any, model: Any, tokenizer: Any,
        *args: Any,
    ) -> AsyncGenerator[Any]:  # fmt: skip
        """Yield the events of a stream, with the log probabilities of all tokens of the text."""
        logprobs: StreamedLogprobs | None = None
        if request.is_include_output_logprobs() and request.include_reasoning:

            def create(token_ids: Sequence[int], given: Any) -> Any:
                return self._create_response_logprobs(
                    token_ids, given, tokenizer, request.top_logprobs
                )

            logprobs = StreamedLogprobs(request, create)
            contexts = logprobs.noting(contexts)
        async for event in super()._process_simple_streaming_events(
            request, params, contexts, context, model, tokenizer, *args
        ):
            if logprobs is not None:
                logprobs.add_to(event)
            yield event

    async def _encoded(self, event: Any) -> Any:
        """Return an event; a long one is encoded in slices."""
        if event.type.endswith(".delta") or not is_long(event):
            return event
        # Events share the item and part objects.
        options = {"mode": "json", "by_alias": True}
        content = await encoded(event, self.engine_client.turns, options, last=False)
        return _EncodedEvent(event.type, content.decode())

    async def responses_full_generator(
        self, request: Any, params: Any, contexts: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete response."""
        await received(contexts)
        build = super().responses_full_generator(
            request, params, replayed(()), context, *args, **kwargs
        )
        outputs = [] if context.streamed_output_items else [context.final_output]
        if takes_long(filter(None, outputs)) and not request.store:
            answer = await built_in_thread(functools.partial(finished, build), outputs)
        else:
            answer = await build
        if isinstance(answer, ErrorResponse):
            return answer
        _record_reasoning(answer)
        answer.__class__ = ResponseAnswer
        return _shaped(answer)

    async def responses_stream_generator(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        """Stream the events of a response."""
        number = 0
        held: list[Any] = []
        try:
            async for event in super().responses_stream_generator(*args, **kwargs):
                if event.type in _BEFORE_ANY_OUTPUT:
                    held.append(event)
                    continue
                for passed in (*held, _with_final_name(event)):
                    number += 1
                    _shape_event(passed)
                    if passed.type in _LAST:
                        _record_reasoning(passed.response)
                    yield await self._encoded(passed)
                held.clear()
        except Exception as error:  # noqa: BLE001  becomes the last event
            if current_context().record.responded:
                for passed in held:
                    number += 1
                    _shape_event(passed)
                    yield passed
            body = response_of(error).error
            yield ResponseErrorEvent(
                type="error",
                code=reason_of(body),
                message=body.message,
                param=body.param,
                sequence_number=number,
                **retry_fields(body),
            )
