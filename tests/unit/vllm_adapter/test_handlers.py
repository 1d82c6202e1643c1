"""Additions to vLLM's handlers: reasoning_content, errors in streams, tokenizing."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatMessage,
)
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

from serving.errors import GroupLost
from serving.vllm_adapter.answer_parser import _with_start
from serving.vllm_adapter.errors import as_vllm_error
from serving.vllm_adapter.handlers import ChatHandler
from serving.vllm_adapter.messages_handler import MessagesHandler
from serving.vllm_adapter.rendering import MESSAGES, SHORT, tokenize_short_texts_at_once
from serving.vllm_adapter.responses_handler import ResponsesHandler


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


async def test_a_message_without_content_has_an_empty_text_block_streamed_or_not():
    handler = bare(MessagesHandler)
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    named = {"id": "chatcmpl-1", "created": 0, "model": "m", "usage": usage}
    ended = {"index": 0, "finish_reason": "length"}

    async def chunks():
        for choices in ([{"index": 0, "delta": {"role": "assistant"}}], [{**ended, "delta": {}}]):
            yield f"data: {json.dumps({**named, 'choices': choices})}\n\n"
        yield f"data: {json.dumps({**named, 'choices': []})}\n\n"
        yield "data: [DONE]\n\n"

    text = "".join([event async for event in handler.message_stream_converter(chunks())])
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = {"role": "assistant", "content": ""}
    whole = handler.messages_full_converter(
        ChatCompletionResponse.model_validate({**named, "choices": [{**ended, "message": message}]})
    )
    assert whole.content[0].model_dump(exclude_none=True) == events[1]["content_block"]


class Renderer:
    """The part of vLLM's renderer that is used."""

    def __init__(self):
        self.at_once = []
        self.in_a_thread = []

    def _tokenize_prompt(self, prompt, params):
        self.at_once.append((prompt, params))
        return "here"

    async def _tokenize_prompt_async(self, prompt, params):
        self.in_a_thread.append((prompt, params))
        return "there"


@pytest.mark.parametrize(
    ("length", "where"),
    [
        pytest.param(0, "here", id="empty"),
        pytest.param(SHORT, "here", id="short"),
        pytest.param(SHORT + 1, "there", id="long"),
    ],
)
async def test_only_long_texts_go_to_a_thread(length, where):
    renderer = Renderer()
    tokenize_short_texts_at_once(renderer)
    prompt = {"prompt": "x" * length}
    assert await renderer._tokenize_prompt_async(prompt, "params") == where
    assert renderer.at_once + renderer.in_a_thread == [(prompt, "params")]


async def test_errors_come_out_when_it_is_awaited():
    renderer = Renderer()
    renderer._tokenize_prompt = lambda prompt, params: 1 // 0
    tokenize_short_texts_at_once(renderer)
    with pytest.raises(ZeroDivisionError):
        await renderer._tokenize_prompt_async({"prompt": "x"}, None)


@pytest.mark.parametrize("method", ["create_messages", "count_tokens"])
@pytest.mark.parametrize(
    ("contents", "waits"),
    [
        pytest.param(["x"], False, id="short"),
        pytest.param(["x"] * MESSAGES, False, id="at-the-limit"),
        pytest.param(["x"] * (MESSAGES + 1), True, id="many-messages"),
        pytest.param([["block"] * (MESSAGES + 1)], True, id="many-blocks"),
    ],
)
async def test_long_conversations_are_converted_in_turn(monkeypatch, method, contents, waits):
    seen = []

    class Turns:
        async def turn(self):
            seen.append("turn")

    async def converted(self, request):
        seen.append("converted")

    monkeypatch.setattr(AnthropicServingMessages, method, converted)
    handler = bare(MessagesHandler)
    handler.engine_client = SimpleNamespace(turns=Turns())
    messages = [SimpleNamespace(content=each) for each in contents]
    await getattr(handler, method)(SimpleNamespace(messages=messages))
    assert seen == ["turn"] * waits + ["converted"]
