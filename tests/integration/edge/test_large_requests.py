"""Requests of few bytes that take much work: rejected early, or processed in a thread."""

import threading

import grpc
import pytest

from serving.api.v1 import inference_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "pocket-r1"
USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER] * 7000}),
        ("/v1/chat/completions", {"messages": [1] * 20_000}),
        ("/v1/completions", {"prompt": ["x"] * 20_000}),
        ("/v1/completions", {"prompt": [7] * 300_000}),
        ("/v1/responses", {"input": [USER] * 3000}),
        ("/v1/messages", {"max_tokens": 1, "messages": [USER] * 7000}),
        ("/tokenize", {"prompt": "x", "more": [1.5] * 20_000}),
    ],
)
async def test_too_many_values_are_refused(edge, path, body):
    answer = await edge.rest.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 413
    assert "the request has more than" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [1] * 5000}),
        ("/v1/responses", {"input": [1] * 5000}),
        ("/v1/messages", {"max_tokens": 1, "messages": [1] * 5000}),
        ("/detokenize", {"tokens": ["x"] * 5000}),
    ],
)
async def test_wrong_lists_have_short_answers(edge, path, body):
    answer = await edge.rest.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert len(answer.content) < 100_000


async def test_too_many_values_are_refused_over_grpc(edge):
    request = pb.ChatRequest(
        model=MODEL, messages=[pb.Message(role=pb.ROLE_USER, content="x")] * 7000
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.Chat(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "security.max_body_values" in caught.value.details()


async def test_grammars_are_read_outside_of_the_event_loop(edge, monkeypatch):
    processor = edge.router.client.input_processor
    process, threads = processor.process_inputs, []

    def noting(*args, **kwargs):
        threads.append(threading.current_thread().name)
        return process(*args, **kwargs)

    monkeypatch.setattr(processor, "process_inputs", noting)
    chat = {"model": MODEL, "messages": [USER]}
    answer = await edge.rest.post(
        "/v1/chat/completions", json={**chat, "structured_outputs": {"regex": "[a-z]{2}"}}
    )
    assert answer.status_code == 200
    assert threads
    assert all(name.startswith("grammar") for name in threads)
    threads.clear()
    assert (await edge.rest.post("/v1/chat/completions", json=chat)).status_code == 200
    assert threads == [threading.main_thread().name]
