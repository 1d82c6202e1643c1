"""An answer that is built in a thread and sent in parts is the same as one built at once."""

import json
import threading

import pytest

from serving.api.v1 import inference_pb2 as pb
from serving.vllm_adapter import long_answers, tokenization_handler
from tests.integration.edge.contract_cases import CHAT, RESPONSE, TEXT
from tests.integration.edge.test_rest_clients import data_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

_OF_EACH_ANSWER = ("id", "created", "created_at", "sequence_number", "item_id", "obfuscation")


def without_ids(value):
    """Remove fields that differ between two answers to the same request."""
    if isinstance(value, dict):
        return {
            name: without_ids(each) for name, each in value.items() if name not in _OF_EACH_ANSWER
        }
    return [without_ids(each) for each in value] if isinstance(value, list) else value


REST = {
    "chat": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3, "n": 2}),
    "chat, prompt": ("/v1/chat/completions", {**CHAT, "prompt_logprobs": 2}),
    "batch": (
        "/v1/chat/completions/batch",
        {**CHAT, "messages": [CHAT["messages"]] * 2, "logprobs": True, "top_logprobs": 3},
    ),
    "text": ("/v1/completions", {**TEXT, "prompt": ["a", "b"], "logprobs": 3}),
    "invocations": ("/invocations", {**TEXT, "logprobs": 3}),
    "response": (
        "/v1/responses",
        {**RESPONSE, "include": ["message.output_text.logprobs"], "top_logprobs": 3},
    ),
    "stream of a response": (
        "/v1/responses",
        {
            **RESPONSE,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 3,
            "stream": True,
        },
    ),
    "tokens": ("/tokenize", {**TEXT, "prompt": "one two", "return_token_strs": True}),
}


@pytest.mark.parametrize(("path", "body"), REST.values(), ids=REST)
async def test_over_rest(edge, monkeypatch, path, body):
    async def asked():
        answer = await edge.rest.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return data_of(answer.text)[-1] if body.get("stream") else answer.json()

    expected = without_ids(await asked())
    monkeypatch.setattr(long_answers, "LONG", 2)
    assert without_ids(await asked()) == expected
    assert json.dumps(expected).count("logprob") > 1 or "token_strs" in expected


@pytest.mark.parametrize("method", ["Chat", "Complete"])
async def test_over_grpc(edge, monkeypatch, method):
    fields = {"model": "pocket-r1", "sampling": pb.SamplingParams(n=2)}
    request = (
        pb.ChatRequest(
            **fields,
            messages=[pb.Message(role=pb.ROLE_USER, content="hi")],
            logprobs=True,
            top_logprobs=3,
        )
        if method == "Chat"
        else pb.CompleteRequest(**fields, text="hi", logprobs=3)
    )
    call = getattr(edge.inference, method)
    expected = await call(request)
    monkeypatch.setattr(long_answers, "LONG", 2)
    answer = await call(request)
    assert [choice.logprobs for choice in answer.choices] == [
        choice.logprobs for choice in expected.choices
    ]
    assert len(answer.choices[1].logprobs[0].top) >= 3
    assert answer.usage == expected.usage


async def test_long_answers_are_built_in_a_thread(edge, monkeypatch):
    monkeypatch.setattr(long_answers, "LONG", 2)
    seen = set()

    def noting(values, free=long_answers._free):
        seen.add(threading.current_thread().name)
        free(values)

    monkeypatch.setattr(long_answers, "_free", noting)
    for name in ("chat", "text", "response"):
        path, body = REST[name]
        seen.clear()
        assert (await edge.rest.post(path, json=body)).status_code == 200
        assert {name.rpartition("_")[0] for name in seen} == {"answers"}


async def test_too_many_tokens_are_the_clients_error(edge, monkeypatch):
    monkeypatch.setattr(tokenization_handler, "MAX_TOKENS", 12)
    for asked in ({"prompt": "one two three " * 9}, {"messages": CHAT["messages"] * 9}):
        answer = await edge.rest.post("/tokenize", json={"model": "pocket-r1", **asked})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
        assert answer.json()["error"]["message"] == "the text has more than 12 tokens"


async def test_strings_of_tokens_have_a_lower_limit(edge, monkeypatch):
    monkeypatch.setattr(tokenization_handler, "MAX_STRINGS", 12)
    body = {"model": "pocket-r1", "prompt": "one two three " * 9}
    assert (await edge.rest.post("/tokenize", json=body)).status_code == 200
    answer = await edge.rest.post("/tokenize", json=body | {"return_token_strs": True})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert "12 tokens, the limit for return_token_strs" in answer.json()["error"]["message"]
