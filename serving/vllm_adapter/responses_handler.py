"""/v1/responses: what we add to vLLM's serving object."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from openai.types.responses import (
    ResponseErrorEvent,
    ResponseReasoningItem,
    ResponseTextConfig,
)
from openai.types.shared import ResponseFormatText
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.request_context import caller
from serving.vllm_adapter.answer_mixins import OurErrors, retry_after_fields
from serving.vllm_adapter.error_response import reason_of, response_of


def _after_reasoning(parser: Any, tokenizer: Any, token_ids: Sequence[int]) -> int:
    """Return the position of the first token behind the reasoning; without its end: 0."""
    reasoning = getattr(parser, "reasoning_parser_cls", None)
    end: int | None = None
    if reasoning is not None:
        end = getattr(reasoning(tokenizer), "end_token_id", None)
    return list(token_ids).index(end) + 1 if end is not None and end in token_ids else 0


def _shaped(response: Any) -> Any:
    """Give a response what OpenAI's always has."""
    if response.text is None:
        response.text = ResponseTextConfig(format=ResponseFormatText(type="text"))
    response.error = None
    for item in response.output:
        _shape_item(item)
    return response


def _shape_item(item: Any) -> None:
    """Put empty lists in the place of nulls that OpenAI's items never have."""
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


class ResponsesHandler(OurErrors, OpenAIServingResponses):
    """/v1/responses; an error in a stream is an ``error`` event, not a cut connection.

    The two events that say that there will be an answer wait for its beginning: while nothing
    is out, a refused request still gets its proper status. Where something is out (a comment
    that keeps the connection), they come before the error.
    """

    def _create_response_logprobs(
        self, token_ids: Sequence[int], logprobs: Any, tokenizer: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Log-probabilities of the text: reasoning has none in this protocol."""
        begin = _after_reasoning(self.parser, tokenizer, token_ids)
        return super()._create_response_logprobs(
            token_ids[begin:], logprobs and logprobs[begin:], tokenizer, *args, **kwargs
        )

    def _make_response_output_items(self, *args: Any, **kwargs: Any) -> Any:
        """Items of a whole response; reasoning is as completed as in a stream."""
        items = super()._make_response_output_items(*args, **kwargs)
        for item in items:
            if isinstance(item, ResponseReasoningItem) and item.status is None:
                item.status = "completed"
        return items

    async def responses_full_generator(self, *args: Any, **kwargs: Any) -> Any:
        """Answer in one piece."""
        answer = await super().responses_full_generator(*args, **kwargs)
        return answer if isinstance(answer, ErrorResponse) else _shaped(answer)

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
                    _shape_event(passed)
                    yield passed
                held.clear()
        except Exception as error:  # noqa: BLE001  the last stop before the client
            if caller().journal.responded:
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
                **retry_after_fields(body),
            )
