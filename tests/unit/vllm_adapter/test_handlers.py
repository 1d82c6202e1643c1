"""Additions to vLLM's handlers: reasoning_content, and errors in streams."""

from types import SimpleNamespace

import msgspec
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatMessage
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

from serving.errors import GroupLost
from serving.vllm_adapter.answer_parser import _with_start
from serving.vllm_adapter.errors import as_vllm_error
from serving.vllm_adapter.handlers import (
    ChatHandler,
    MessagesHandler,
    ResponsesHandler,
    install_handlers,
)


def bare(handler):
    """Make a handler without vLLM's constructor."""
    return object.__new__(handler)


@pytest.mark.parametrize("reasoning", [None, "", "hm"])
def test_message_has_both_names(reasoning):
    message = bare(ChatHandler)._create_chat_message(
        role="assistant", content="42", reasoning=reasoning
    )
    assert isinstance(message, ChatMessage)
    assert message.model_dump().get("reasoning_content") == reasoning


class _Marks:
    start_token_id, end_token_id = 1, 2


class _DeepSeek(_Marks, DeepSeekR1ReasoningParser):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("parser", "tokens", "expected"),
    [
        pytest.param(None, (5, 6), (5, 6), id="no reasoning parser"),
        pytest.param(_Marks(), (5, 2, 6), (1, 5, 2, 6), id="opened in the prompt"),
        pytest.param(_Marks(), (1, 5, 2, 6), (1, 5, 2, 6), id="opened in the output"),
        pytest.param(_Marks(), (5, 6), (5, 6), id="no marks, no reasoning"),
        pytest.param(_DeepSeek(), (5, 6), (1, 5, 6), id="DeepSeek, cut in its reasoning"),
    ],
)
def test_reasoning_counts_from_where_the_prompt_opened_it(parser, tokens, expected):
    assert _with_start(parser, tokens) == expected


@pytest.mark.parametrize("error", [GroupLost("gone"), as_vllm_error(GroupLost("gone"))])
async def test_chat_stream_error_is_an_event_with_our_reason(error):
    text = bare(ChatHandler).create_streaming_error_response(error)
    content = msgspec.json.decode(text)["error"]
    assert (content["code"], content["reason"], content["message"]) == (503, "GROUP_LOST", "gone")


BEGUN = ("response.created", "response.in_progress")


@pytest.mark.parametrize(
    ("begun", "passed"),
    [
        pytest.param((*BEGUN, "response.output_text.delta"), 3, id="in the middle"),
        pytest.param(BEGUN, 0, id="before any output, so that it can have its status"),
    ],
)
async def test_responses_stream_error_is_an_event(monkeypatch, begun, passed):
    async def failing(self, *args):
        for name in begun:
            yield SimpleNamespace(type=name)
        raise as_vllm_error(GroupLost("gone"))

    base = ResponsesHandler.__mro__[2]
    monkeypatch.setattr(base, "responses_stream_generator", failing)
    *events, error = [e async for e in bare(ResponsesHandler).responses_stream_generator()]
    assert [event.type for event in events] == list(begun[:passed])
    assert (error.type, error.code, error.message, error.sequence_number) == (
        "error",
        "GROUP_LOST",
        "gone",
        passed,
    )


async def test_messages_stream_error_is_anthropics_event():
    async def chunks():
        yield 'data: {"error": {"message": "gone", "type": "overloaded_error", "code": 503}}'

    events = [e async for e in bare(MessagesHandler).message_stream_converter(chunks())]
    name, data = events[-1].strip().split("\n")
    assert name == "event: error"
    assert msgspec.json.decode(data.removeprefix("data: ")) == {
        "type": "error",
        "error": {
            "type": "overloaded_error",
            "message": "gone",
            "reason": "NOT_READY",
        },
    }


def test_adopt_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="openai_serving_chat"):
        install_handlers(SimpleNamespace(openai_serving_chat=object()))
