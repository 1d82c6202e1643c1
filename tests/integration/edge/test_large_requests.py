"""Requests of few bytes that take much work: rejected early, or processed in a thread."""

import asyncio
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


@pytest.fixture
def noted(edge, monkeypatch):
    """Call the functions in the list before each request is processed."""
    processor = edge.router.client.input_processor
    process, note = processor.process_inputs, []

    def noting(*args, **kwargs):
        for each in note:
            each()
        return process(*args, **kwargs)

    monkeypatch.setattr(processor, "process_inputs", noting)
    return note


@pytest.mark.parametrize(
    "costly",
    [
        {"structured_outputs": {"regex": "[a-z]{2}"}},
        {"bad_words": ["x" * 3000]},
        {"bad_words": list("abcdefghi")},
    ],
)
async def test_costly_fields_are_read_outside_of_the_event_loop(edge, noted, costly):
    threads = []
    noted.append(lambda: threads.append(threading.current_thread().name))
    chat = {"model": MODEL, "messages": [USER]}
    answer = await edge.rest.post("/v1/chat/completions", json={**chat, **costly})
    assert answer.status_code == 200
    assert threads
    assert all(name.startswith("grammar") for name in threads)
    threads.clear()
    assert (await edge.rest.post("/v1/chat/completions", json=chat)).status_code == 200
    assert threads == [threading.main_thread().name]


@pytest.mark.parametrize("stream", [False, True])
async def test_long_bad_words_are_refused(edge, stream):
    body = {"model": MODEL, "messages": [USER], "bad_words": ["x" * 40_000], "stream": stream}
    answer = await edge.rest.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert "bad_words has 40000 characters" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["x"] * 20}),
        ("/v1/chat/completions/batch", {"messages": [[USER]] * 20}),
    ],
)
async def test_the_prompts_of_a_request_are_processed_one_a_turn(edge, noted, path, body):
    loop, turns, turn = asyncio.get_running_loop(), [], 0

    def count():
        nonlocal turn, ticking
        turn += 1
        ticking = loop.call_soon(count)

    ticking = loop.call_soon(count)
    noted.append(lambda: turns.append(turn))
    answer = await edge.rest.post(path, json={"model": MODEL, **body})
    ticking.cancel()
    assert answer.status_code == 200
    assert len(set(turns)) == 20
