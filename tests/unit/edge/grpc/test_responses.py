"""vLLM's JSON to proto: all fields, and enums for finish reasons."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc import responses
from serving.edge.grpc.vllm_json import decode_chat, decode_text
from serving.errors import EngineError


def chat_chunk(delta: dict, **choice) -> pb.ChatStreamResponse:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [{"index": 1, "delta": delta, **choice}],
    }
    return responses.chat_stream_response(decode_chat(json.dumps(chunk)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(None, pb.FINISH_REASON_UNSPECIFIED, id="goes on"),
        pytest.param("stop", pb.FINISH_REASON_STOP, id="stop"),
        pytest.param("length", pb.FINISH_REASON_LENGTH, id="length"),
        pytest.param("tool_calls", pb.FINISH_REASON_TOOL_CALLS, id="tool calls"),
        pytest.param("abort", pb.FINISH_REASON_ABORT, id="abort"),
        pytest.param("error", pb.FINISH_REASON_ERROR, id="error"),
        pytest.param("repetition", pb.FINISH_REASON_REPETITION, id="repetition"),
    ],
)
def test_finish_reasons(text, reason):
    assert chat_chunk({}, finish_reason=text).choices[0].finish_reason == reason


def test_every_reason_of_vllm_is_known():
    from vllm.v1.engine import FINISH_REASON_STRINGS

    assert set(FINISH_REASON_STRINGS) <= set(responses.FINISH_REASONS)


def test_an_unknown_reason_is_an_error_and_not_silence():
    with pytest.raises(EngineError, match="boredom"):
        chat_chunk({}, finish_reason="boredom")


def test_reasoning_content_and_role():
    chunk = chat_chunk({"role": "assistant", "reasoning": "hm", "reasoning_content": "hm"})
    assert (chunk.id, chunk.model, chunk.created_unix_seconds) == ("chatcmpl-1", "m", 7)
    delta = chunk.choices[0]
    assert (delta.index, delta.role) == (1, pb.ROLE_ASSISTANT)
    assert (delta.reasoning_content, delta.content) == ("hm", "")


def test_tool_call_deltas():
    call = {"index": 2, "id": "c", "type": "function", "function": {"name": "f"}}
    more = {"index": 2, "function": {"arguments": '{"a'}}
    first = chat_chunk({"tool_calls": [call]}).choices[0].tool_calls[0]
    second = chat_chunk({"tool_calls": [more]}).choices[0].tool_calls[0]
    assert (first.index, first.id, first.function.name) == (2, "c", "f")
    assert (second.index, second.id, second.function.arguments_json) == (2, "", '{"a')


@pytest.mark.parametrize(
    ("given_reason", "expected"),
    [pytest.param(None, "", id="none"), pytest.param("!", "!", id="string"), (7, "7")],
)
def test_stop_reason_is_text(given_reason, expected):
    assert chat_chunk({}, stop_reason=given_reason).choices[0].stop_reason == expected


def test_logprobs_carry_token_bytes():
    entry = {"token": "\ufffd", "logprob": -0.5, "bytes": [195]}
    top = {"token": "x", "logprob": -1.5, "bytes": None}
    content = [{**entry, "top_logprobs": [entry, top]}]
    (logprob,) = chat_chunk({}, logprobs={"content": content}).choices[0].logprobs
    assert (logprob.token, logprob.logprob, logprob.token_bytes) == ("\ufffd", -0.5, b"\xc3")
    assert [t.token_bytes for t in logprob.top] == [b"\xc3", b"x"]


def test_usage_with_details():
    chunk = {
        "choices": [],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4, "multimodal_tokens": None},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    }
    response = responses.chat_stream_response(decode_chat(json.dumps(chunk)))
    assert response.usage == pb.Usage(
        prompt_tokens=5, completion_tokens=7, total_tokens=12, cached_tokens=4, reasoning_tokens=3
    )


def test_absent_usage_is_absent():
    assert not chat_chunk({}).HasField("usage")


def test_whole_chat_answer():
    answer = {
        "id": "chatcmpl-2",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "reasoning": "r",
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                },
                "finish_reason": "tool_calls",
                "token_ids": [1, 2],
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "prompt_token_ids": [9],
    }
    response = responses.chat_response(decode_chat(json.dumps(answer)))
    (choice,) = response.choices
    assert choice.message == pb.Message(
        role=pb.ROLE_ASSISTANT,
        reasoning_content="r",
        tool_calls=[pb.ToolCall(id="c", function=pb.FunctionCall(name="f", arguments_json="{}"))],
    )
    assert (list(choice.token_ids), list(response.prompt_token_ids)) == ([1, 2], [9])
    assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS


def test_completion_logprobs():
    answer = {
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "logprobs": {
                    "text_offset": [0, 1],
                    "tokens": ["a", "b"],
                    "token_logprobs": [None, -0.25],
                    "top_logprobs": [None, {"b": -0.25, "c": -2.0}],
                },
                "prompt_logprobs": None,
            }
        ]
    }
    (choice,) = responses.complete_response(decode_text(json.dumps(answer))).choices
    first, second = choice.logprobs
    assert (first.token, first.token_bytes) == ("a", b"a")
    assert math.isnan(first.logprob)
    assert {top.token: top.logprob for top in second.top} == {"b": -0.25, "c": -2.0}


_text = st.text(st.characters(exclude_categories=("Cs",)))


@given(_text, _text)
def test_any_text_survives(content, reasoning):
    delta = chat_chunk({"content": content, "reasoning": reasoning}).choices[0]
    assert (delta.content, delta.reasoning_content) == (content, reasoning)
