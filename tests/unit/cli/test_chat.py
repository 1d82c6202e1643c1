"""chat: what is printed, what is remembered, and both protocols against small fake routers."""

import io
import json
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import grpc
import pytest

from serving import errors
from serving.api.v1 import inference_pb2, inference_pb2_grpc
from serving.cli import chat
from serving.cli.local.state import ProcessRecord, RunState, StateFile
from serving.cli.main import main
from serving.cli.verify.layouts import free_ports
from serving.client.chat import GrpcChatClient, Piece, RestChatClient, Sampling, Turn

ANSWER = [Piece("reasoning", "\n1+1"), Piece("reasoning", " is 2"), Piece("content", "\n\n2")]


class ScriptedClient:
    """Answers with what it was given; an exception in it is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[list[Turn]] = []

    def stream(self, turns):
        self.asked.append(list(turns))
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def talk(client, *lines, system=None):
    """Run a conversation over ``lines`` (an exception stands for a key); return the screen."""
    out = io.StringIO()
    screen = chat.Screen(out, show_reasoning=True, color=False)
    conversation = chat.Conversation(client, screen, system=system)
    pending = [*lines, None]

    def read():
        line = pending.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    chat.converse(conversation, screen, read)
    return out.getvalue()


@pytest.mark.parametrize(
    ("show", "color", "printed"),
    [
        pytest.param(True, False, "1+1 is 2\n\n2\n", id="plain"),
        pytest.param(True, True, "\x1b[2m1+1 is 2\x1b[0m\n\n2\n", id="dimmed"),
        pytest.param(False, True, "2\n", id="hidden"),
        pytest.param(None, None, "2\n", id="in-a-pipe"),
    ],
)
def test_reasoning_is_set_off_from_the_answer(show, color, printed):
    out = io.StringIO()
    content = chat.Screen(out, show_reasoning=show, color=color).show(iter(ANSWER))
    assert out.getvalue() == printed
    assert content == "\n\n2"


def test_an_answer_that_breaks_off_leaves_the_terminal_as_it_was():
    def broken() -> Iterator[Piece]:
        yield Piece("reasoning", "hm")
        raise errors.GroupLost("gone")

    out = io.StringIO()
    with pytest.raises(errors.GroupLost):
        chat.Screen(out, show_reasoning=True, color=True).show(broken())
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\x1b[2Jb", "a[2Jb"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x07\x00\x7f\x9b", ""),
        ("héé 你好", "héé 你好"),
    ],
    ids=["escape", "layout", "controls", "letters"],
)
def test_a_model_cannot_drive_the_terminal(text, printed):
    assert chat.printable(text) == printed


def test_a_conversation_is_remembered_without_the_reasoning():
    client = ScriptedClient(ANSWER, [Piece("content", "3")])
    talk(client, "1+1?", "and 1 more?", system="be short")
    assert client.asked[1] == [
        Turn("system", "be short"),
        Turn("user", "1+1?"),
        Turn("assistant", "2"),
        Turn("user", "and 1 more?"),
    ]


def test_reset_forgets_all_but_the_system_message():
    client = ScriptedClient(ANSWER, ANSWER)
    talk(client, "1+1?", "/reset", "again", system="s")
    assert client.asked[1] == [Turn("system", "s"), Turn("user", "again")]


@pytest.mark.parametrize(
    "trouble", [KeyboardInterrupt(), errors.Overloaded("too much")], ids=["ctrl-c", "error"]
)
def test_a_turn_that_did_not_finish_is_forgotten(trouble):
    client = ScriptedClient([Piece("content", "half"), trouble], ANSWER)
    shown = talk(client, "first", "second")
    assert client.asked[1] == [Turn("user", "second")]
    assert ("(stopped)" in shown) or ("error: too much" in shown)


def test_keys_and_commands():
    client = ScriptedClient()
    shown = talk(client, "", "  ", KeyboardInterrupt(), "/help", "/nonsense", "/quit", "never")
    assert client.asked == []
    assert "Ctrl-D or /quit leaves" in shown
    assert shown.count("/reset    forget") == 2


# ---------------------------------------------------------------------------- REST


def chunk(delta: dict) -> bytes:
    body = {
        "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }  # fmt: skip
    return f"data: {json.dumps(body)}\n\n".encode()


@contextmanager
def rest_router(status: int, data: bytes, kind: str = "text/event-stream"):
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_rest_streams_reasoning_and_content(field):
    data = chunk({"role": "assistant", "content": ""}) + chunk({field: "hm"})
    data += chunk({"content": "2"}) + b"data: [DONE]\n\n"
    with rest_router(200, data) as (url, bodies):
        client = RestChatClient(url, "pocket-r1", Sampling(temperature=0.0, max_tokens=9))
        pieces = list(client.stream([Turn("system", "s"), Turn("user", "1+1?")]))
    assert pieces == [Piece("reasoning", "hm"), Piece("content", "2")]
    (body,) = bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("pocket-r1", 0.0, 9)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_rest_leaves_out_what_was_not_chosen():
    with rest_router(200, b"data: [DONE]\n\n") as (url, bodies):
        list(RestChatClient(url, "m", Sampling()).stream([Turn("user", "x")]))
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
def test_rest_errors_keep_the_servers_words(status, expected):
    data = json.dumps({"error": {"message": "its own words"}}).encode()
    with rest_router(status, data, "application/json") as (url, _):
        client = RestChatClient(url, "m", Sampling())
        with pytest.raises(expected, match="its own words"):
            list(client.stream([Turn("user", "x")]))


def test_rest_error_in_the_middle_of_a_stream():
    data = chunk({"content": "2"}) + b'data: {"error": {"message": "group lost"}}\n\n'
    with rest_router(200, data) as (url, _):
        stream = RestChatClient(url, "m", Sampling()).stream([Turn("user", "x")])
        assert next(stream) == Piece("content", "2")
        with pytest.raises(errors.EngineError, match="group lost"):
            next(stream)


# ---------------------------------------------------------------------------- gRPC


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Streams a fixed answer, or fails; waits for the client to cancel if told."""

    def __init__(self, failure: grpc.StatusCode | None = None, *, endless: bool = False):
        self.failure = failure
        self.endless = endless
        self.requests: list[inference_pb2.ChatRequest] = []
        self.ended = Event()

    def ChatStream(self, request, context):  # noqa: N802  named by the proto
        self.requests.append(request)
        context.add_callback(self.ended.set)
        if self.failure is not None:
            context.abort(self.failure, "its own words")
        delta = inference_pb2.ChatChoiceDelta
        for part in (delta(reasoning_content="hm"), delta(content="2")):
            yield inference_pb2.ChatStreamResponse(choices=[part])
        if self.endless:
            self.ended.wait(10)


@contextmanager
def grpc_router(servicer: Inference):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(5)


def test_grpc_streams_reasoning_and_content():
    servicer = Inference()
    with grpc_router(servicer) as target:
        client = GrpcChatClient(target, "pocket-r1", Sampling(temperature=0.5))
        pieces = list(client.stream([Turn("user", "1+1?"), Turn("assistant", "2")]))
    assert pieces == [Piece("reasoning", "hm"), Piece("content", "2")]
    (request,) = servicer.requests
    assert request.model == "pocket-r1"
    assert [m.role for m in request.messages] == [
        inference_pb2.ROLE_USER,
        inference_pb2.ROLE_ASSISTANT,
    ]
    assert request.sampling.temperature == 0.5
    assert not request.sampling.HasField("max_tokens")


def test_grpc_closing_the_stream_cancels_the_call():
    servicer = Inference(endless=True)
    with grpc_router(servicer) as target:
        stream = GrpcChatClient(target, "m", Sampling()).stream([Turn("user", "x")])
        assert next(stream) == Piece("reasoning", "hm")
        stream.close()
        assert servicer.ended.wait(5)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFound),
        (grpc.StatusCode.UNAVAILABLE, errors.NotReady),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.INTERNAL, errors.EngineError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_grpc_errors_keep_the_servers_words(code, expected):
    with grpc_router(Inference(code)) as target:
        client = GrpcChatClient(target, "m", Sampling())
        with pytest.raises(expected, match="its own words"):
            list(client.stream([Turn("user", "x")]))


# ---------------------------------------------------------------------------- the command


def test_one_question_in_a_pipe_prints_the_answer_alone(capsys):
    with grpc_router(Inference()) as target:
        assert main(["chat", "1+1?", "--grpc", "--server", target]) == 0
    assert capsys.readouterr().out == "2\n"


def test_a_piped_question(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1?\n"))
    servicer = Inference()
    with grpc_router(servicer) as target:
        assert main(["chat", "--grpc", "--server", target]) == 0
    assert servicer.requests[0].messages[0].content == "1+1?"
    assert capsys.readouterr().out == "2\n"


def test_an_empty_pipe_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["chat"]) == 1
    assert capsys.readouterr().err.startswith("error: no question")


def test_nothing_running_is_one_clear_line(capsys):
    (port,) = free_ports(1)
    assert main(["chat", "1+1?", "--port", str(port)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == f"error: nothing answers at http://127.0.0.1:{port}"
    assert "make run" in shown.err


@pytest.mark.parametrize(
    "flags", [pytest.param([], id="REST"), pytest.param(["--grpc"], id="gRPC")]
)
def test_without_an_address_it_talks_to_what_runs_here(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    data = chunk({"content": "2"}) + b"data: [DONE]\n\n"
    servicer = Inference()
    with rest_router(200, data) as (url, bodies), grpc_router(servicer) as target:
        StateFile(tmp_path).write(
            RunState(
                up=ProcessRecord(1, 5.0, "python"),
                processes=(),
                rest_url=url,
                grpc_address=target,
                join_address="",
                groups=1,
                ranks=2,
                model="mine",
                started_at=1.0,
                log_folder="/l",
                ray_address="",
                ray_token="t",
                ray_folder="",
                dashboard_url="",
                ready=True,
            )
        )
        assert main(["chat", "1+1?", *flags]) == 0
    assert capsys.readouterr().out == "2\n"
    models = [request.model for request in servicer.requests] + [body["model"] for body in bodies]
    assert models == ["mine"]
