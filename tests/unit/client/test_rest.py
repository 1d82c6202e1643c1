"""The blocking REST client: answers, errors, no response."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from serving import errors
from serving.cli.local.up import ask_sample
from serving.client.chat import Delta, GenerateOptions, GenerateRequest, Message, Usage
from serving.client.rest import RestClient
from serving.errors import EngineError, ModelNotFound, NotReady
from tests.support.waiting import PATIENCE
from tests.unit.client.fake_routers import asked, chunk, rest_router


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the status and body that a test sets."""

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


def stream_chat(url: str) -> Iterator[Delta]:
    request = GenerateRequest((Message("user", "What?"),))
    return RestClient(url).generate(request, GenerateOptions("m", timeout=PATIENCE))


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
    assert RestClient(url).get_json("/", 5) == expected


def test_nobody_answers() -> None:
    with pytest.raises(NotReady, match=r"cannot reach the router at http://127\.0\.0\.1:1"):
        RestClient("http://127.0.0.1:1").get_json("/fleet", 5)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_stream_tells_reasoning_from_content(url: str, field: str) -> None:
    answer(200, events({"role": "assistant"}, {field: "7+5"}, {field: "=12"}, {"content": "42"}))
    deltas = list(stream_chat(url))
    parts = [part for delta in deltas for part in delta.parts()]
    assert parts == [("reasoning", "7+5"), ("reasoning", "=12"), ("content", "42")]
    assert [delta.usage for delta in deltas if delta.usage] == [Usage(0, 0, 0)]
    (asked,) = Handler.asked
    assert (asked["model"], asked["stream"]) == ("m", True)


def test_refusal_has_the_routers_words(url: str) -> None:
    answer(404, '{"error": {"message": "no model m"}}')
    with pytest.raises(ModelNotFound, match="returned HTTP 404: no model m"):
        list(stream_chat(url))


def test_an_error_in_the_stream_is_an_error(url: str) -> None:
    answer(200, 'data: {"error": {"message": "group lost"}}\n\n')
    with pytest.raises(EngineError, match="stream failed: group lost"):
        list(stream_chat(url))


def test_a_stream_without_its_end_is_an_error(url: str) -> None:
    answer(200, 'data: {"choices": [{"delta": {"content": "4"}}]}\n\n')
    stream = stream_chat(url)
    assert next(stream) == Delta("4")
    with pytest.raises(EngineError, match="closed the stream before"):
        next(stream)


def test_addresses_that_end_in_v1_are_taken(url: str) -> None:
    answer(200, '{"a": 1}')
    assert RestClient(f"{url}/v1/").get_json("/", 5) == (200, {"a": 1})


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


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_streams_reasoning_and_content(field):
    data = chunk({"role": "assistant", "content": ""}) + chunk({field: "hm"})
    data += chunk({"content": "2"}) + b"data: [DONE]\n\n"
    with rest_router(200, data) as (url, bodies):
        request = asked(("system", "s"), ("user", "1+1?"), max_tokens=9)
        options = GenerateOptions("pocket-r1", temperature=0.0)
        deltas = list(RestClient(url).generate(request, options))
    assert deltas == [Delta(), Delta(reasoning="hm"), Delta("2")]
    (body,) = bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("pocket-r1", 0.0, 9)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_leaves_out_what_was_not_chosen():
    with rest_router(200, b"data: [DONE]\n\n") as (url, bodies):
        list(RestClient(url).generate(asked(("user", "x")), GenerateOptions("m")))
    assert not {"temperature", "max_tokens"} & set(bodies[0])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.InvalidRequest),
        (404, errors.ModelNotFound),
        (429, errors.Overloaded),
        (503, errors.NotReady),
        (500, errors.EngineError),
    ],
)
def test_errors_keep_the_servers_words(status, expected):
    data = json.dumps({"error": {"message": "its own words"}}).encode()
    with rest_router(status, data, "application/json") as (url, _):
        stream = RestClient(url).generate(asked(("user", "x")), GenerateOptions("m"))
        with pytest.raises(expected, match="its own words"):
            list(stream)


def test_error_in_the_middle_of_a_stream():
    data = chunk({"content": "2"}) + b'data: {"error": {"message": "group lost"}}\n\n'
    with rest_router(200, data) as (url, _):
        stream = RestClient(url).generate(asked(("user", "x")), GenerateOptions("m"))
        assert next(stream) == Delta("2")
        with pytest.raises(errors.EngineError, match="group lost"):
            next(stream)
