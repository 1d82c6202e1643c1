"""Fast chunks are serialized to the same bytes as vLLM's, by vLLM's generators."""

import asyncio
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.entrypoints.generate.base.protocol import DeltaMessage, DeltaToolCall
from vllm.entrypoints.openai.chat_completion import serving as chat_module
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from serving.vllm_adapter.fast_chunks import (
    ChatChoice,
    ChatChunk,
    TextChoice,
    TextChunk,
    with_names,
)
from serving.vllm_adapter.handlers import ChatHandler, CompletionHandler

PROMPT = [1, 2, 3]
MODEL = "m"
TEXTS = ["a", "", 'quo"te\\', "line\nbreak\t", "\x00\x1f\x7f", "é漢🦜", "\u2028</script>", "/"]
TOKENIZER = SimpleNamespace(decode=lambda token: f"<{token}>", convert_ids_to_tokens=str)


class Parser:
    """Returns reasoning up to the third part, then a tool call."""

    def __init__(self):
        self.seen = 0

    def parse_delta(self, *, delta_text, finished, **_):
        self.seen += 1
        if self.seen == 2:
            return None
        if self.seen < 3:
            delta = DeltaMessage(reasoning=delta_text)
            delta.reasoning_content = delta_text
            return delta
        if finished:
            return DeltaMessage(tool_calls=[DeltaToolCall(index=0, type="function", id="c1")])
        return DeltaMessage(content=delta_text)

    def count_reasoning_tokens(self, token_ids):
        return len(token_ids) // 2


def outputs(texts, *, choices=1, logprobs=False, stop_reason=None):
    """An answer in parts, as the fleet yields them."""
    for position, text in enumerate(texts):
        last = position == len(texts) - 1
        yield RequestOutput(
            request_id="r",
            prompt="the prompt",
            prompt_token_ids=PROMPT,
            prompt_logprobs=None,
            outputs=[
                CompletionOutput(
                    index=index,
                    text=text,
                    token_ids=[position + 10],
                    cumulative_logprob=None,
                    logprobs=[{position + 10: Logprob(-0.1, 1, "x"), 5: Logprob(-2.5, 2, "é")}]
                    if logprobs
                    else None,
                    finish_reason="stop" if last else None,
                    stop_reason=stop_reason if last else None,
                )
                for index in range(choices)
            ],
            finished=last,
            num_cached_tokens=1,
        )


def collected(events):
    async def collect():
        return [event async for event in events]

    return asyncio.run(collect())


def handler(kind, **more):
    """A handler with the state that its stream generator uses."""
    made = object.__new__(kind)
    values = {
        "enable_force_include_usage": False,
        "enable_prompt_tokens_details": True,
        "enable_per_request_metrics": False,
        "system_fingerprint": "fp",
        "return_tokens_as_token_ids": False,
        "response_role": "assistant",
        "enable_log_outputs": False,
        "request_logger": None,
        "parser_cls": None,
        "_include_reasoning_tokens_details": False,
    }
    for name, value in (values | more).items():
        setattr(made, name, value)
    return made


async def numbered(parts):
    for part in parts:
        yield 0, part


async def each(parts):
    for part in parts:
        yield part


def texts_of(kind, request, parts):
    request = CompletionRequest(model=MODEL, prompt="x", stream=True, max_tokens=9, **request)
    return collected(
        handler(kind).completion_stream_generator(
            request,
            [],
            numbered(parts),
            "cmpl-1",
            7,
            MODEL,
            1,
            TOKENIZER,
            SimpleNamespace(),
        )
    )


USAGE = {"stream_options": {"include_usage": True}}
CACHED = re.compile(r',"prompt_tokens_details":\{"cached_tokens":\d+\}')
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


# Fields that only OpenAI's log-probabilities have, and only vLLM's for an echo.
REFUSAL = ',"refusal":null'
ECHOED = re.compile(r',"prompt_token_ids":\[[\d,]+\]')


def without_cached(events, request_fields):
    """Remove fields from running usage that only vLLM's last usage has."""
    events = [event.replace(REFUSAL, "") for event in events]
    if request_fields is not CONTINUOUS:
        return events
    return [CACHED.sub("", event) for event in events[:-2]] + events[-2:]


@pytest.mark.parametrize(
    ("request_fields", "answer"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param(USAGE, {}, id="usage"),
        pytest.param(CONTINUOUS, {}, id="usage all along"),
        pytest.param({"return_token_ids": True}, {}, id="token ids"),
        pytest.param({"echo": True}, {}, id="echo"),
        pytest.param({"n": 3}, {"choices": 3}, id="three choices"),
        pytest.param({"logprobs": 2}, {"logprobs": True}, id="log-probabilities"),
        pytest.param({"stop": ["x"]}, {"stop_reason": "x"}, id="stop string"),
        pytest.param({}, {"stop_reason": 17}, id="stop token"),
    ],
)
def test_completions_are_written_as_by_vllm(request_fields, answer):
    ours = texts_of(CompletionHandler, request_fields, outputs(TEXTS, **answer))
    theirs = texts_of(OpenAIServingCompletion, request_fields, outputs(TEXTS, **answer))
    if "echo" in request_fields:
        theirs = [ECHOED.sub(',"prompt_token_ids":null', event) for event in theirs]
    assert without_cached(ours, request_fields) == theirs
    assert len(ours) > len(TEXTS)
    assert not any('"error"' in event for event in ours)


def chat_of(kind, monkeypatch, request, parts, parser):
    request = ChatCompletionRequest(
        model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True, **request
    )
    monkeypatch.setattr(chat_module.time, "time", lambda: 7.0)
    more = {}
    if parser:
        more = {
            "parser_cls": Parser,
            "_make_parser": lambda *_: Parser(),
            "_include_reasoning_tokens_details": True,
        }
    return collected(
        handler(kind, **more).chat_completion_stream_generator(
            request, each(parts), "chatcmpl-1", MODEL, [], TOKENIZER, SimpleNamespace()
        )
    )


@pytest.mark.parametrize("parser", [False, True], ids=["text", "parser"])
@pytest.mark.parametrize(
    ("request_fields", "answer"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param(USAGE, {}, id="usage"),
        pytest.param(CONTINUOUS, {}, id="usage all along"),
        pytest.param({"return_token_ids": True}, {}, id="token ids"),
        pytest.param({"return_prompt_text": True}, {}, id="prompt"),
        pytest.param({"n": 2}, {"choices": 2}, id="two choices"),
        pytest.param({"logprobs": True, "top_logprobs": 2}, {"logprobs": True}, id="logprobs"),
        pytest.param({"include_reasoning": False}, {}, id="reasoning hidden"),
        pytest.param({"parallel_tool_calls": False}, {}, id="one tool call at most"),
        pytest.param({}, {"stop_reason": "x"}, id="stop string"),
    ],
)
def test_chats_are_written_as_by_vllm(monkeypatch, request_fields, answer, parser):
    arguments = (monkeypatch, request_fields)
    ours = chat_of(ChatHandler, *arguments, outputs(TEXTS, **answer), parser)
    theirs = chat_of(OpenAIServingChat, *arguments, outputs(TEXTS, **answer), parser)
    assert without_cached(ours, request_fields) == theirs
    assert len(ours) >= len(TEXTS)
    assert not any('"error"' in event for event in ours)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.text("ab"))
def test_any_text_is_written_as_by_pydantic(text, reason):
    light = TextChunk(
        id="c",
        object="text_completion",
        created=1,
        model=MODEL,
        choices=[TextChoice(index=0, text=text, finish_reason=reason)],
    )
    assert light.model_dump_json(exclude_unset=True) == light.to_pydantic().model_dump_json(
        exclude_unset=True
    )


@pytest.mark.parametrize("light", [TextChoice, TextChunk, ChatChoice, ChatChunk])
def test_fields_are_those_of_vllms_class_in_its_order(light):
    assert light.__struct_fields__ == tuple(light.pydantic_type.model_fields)


def test_a_function_that_does_not_use_the_name_is_refused():
    def function():
        return TEXTS

    assert with_names(function, TEXTS=[])() == []
    assert function() == TEXTS
    with pytest.raises(TypeError, match="does not use Chunk"):
        with_names(function, Chunk=None)
    with pytest.raises(TypeError, match="not a Python function"):
        with_names(len, Chunk=None)
