"""Asking a router over REST: answers, refusals, silence."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from serving.cli.local.sample import ask_sample
from serving.client.rest import get_json, stream_chat
from serving.errors import NotReady


class Handler(BaseHTTPRequestHandler):
    """Answers every request with what the test put there."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    asked: ClassVar[list[dict[str, object]]] = []

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.asked.append(json.loads(self.rfile.read(length)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def answer(status: int, body: str) -> None:
    Handler.status, Handler.body = status, body.encode()
    Handler.asked.clear()


def events(*deltas: dict[str, str]) -> str:
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n" for delta in deltas]
    end = [": comment\n", 'data: {"choices": [], "usage": {}}\n', "data: [DONE]"]
    return "\n".join([*lines, *end])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, '{"a": 1}', (200, {"a": 1})),
        (503, '{"ready": false}', (503, {"ready": False})),
        (200, "", (200, None)),
        (404, "Not Found", (404, None)),
    ],
)
def test_get_json(url: str, status: int, body: str, expected: tuple[int, object]) -> None:
    answer(status, body)
    assert get_json(url, 5) == expected


def test_nobody_answers() -> None:
    with pytest.raises(NotReady, match=r"no router answers at http://127\.0\.0\.1:1"):
        get_json("http://127.0.0.1:1/fleet", 5)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_stream_tells_reasoning_from_content(url: str, field: str) -> None:
    answer(200, events({"role": "assistant"}, {field: "7+5"}, {field: "=12"}, {"content": "42"}))
    pieces = list(stream_chat(url, "m", "What?", 5))
    assert pieces == [("reasoning", "7+5"), ("reasoning", "=12"), ("content", "42")]
    (asked,) = Handler.asked
    assert (asked["model"], asked["stream"]) == ("m", True)


def test_refusal_has_the_routers_words(url: str) -> None:
    answer(404, '{"error": {"message": "no model m"}}')
    with pytest.raises(NotReady, match="answered 404: no model m"):
        list(stream_chat(url, "m", "What?", 5))


def test_an_error_in_the_stream_is_an_error(url: str) -> None:
    answer(200, 'data: {"error": {"message": "group lost"}}\n\n')
    with pytest.raises(NotReady, match="broke off: group lost"):
        list(stream_chat(url, "m", "What?", 5))


def test_sample_prints_question_reasoning_answer(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = [{"content": text} for text in ("\n", "\n4", "2")]
    answer(200, events({"reasoning": "7+5=12"}, *contents))
    ask_sample(url, "m", sys.stdout)
    assert capsys.readouterr().out == "\nyou: What is 17+25?\nreasoning: 7+5=12\nanswer: 42\n\n"


def test_sample_says_if_there_is_no_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer(200, events())
    ask_sample(url, "m", sys.stdout)
    assert "(no answer)" in capsys.readouterr().out
