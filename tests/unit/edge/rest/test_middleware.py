"""The ASGI layer around vLLM's app, tried on small apps over httpx's ASGI transport."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse

from serving.edge.gate import Gate
from serving.edge.rest import middleware
from serving.edge.rest.middleware import EdgeMiddleware
from serving.errors import Overloaded
from serving.fleet.deadline import deadline_var
from serving.request_context import caller_var

LIMIT = 2048


class FixedClock:
    """Time that stands still."""

    def monotonic(self) -> float:
        return 100.0

    def time(self) -> float:
        return 0.0


@pytest.fixture
def lines(monkeypatch):
    """Canonical log lines."""
    seen = []
    monkeypatch.setattr(middleware, "log_request", seen.append)
    return seen


@pytest.fixture
def serve():
    """Wrap an app and call it."""
    gate = Gate()

    def client(app, **options) -> httpx.AsyncClient:
        wrapped = EdgeMiddleware(
            app, gate=gate, model="m", max_body_bytes=LIMIT, clock=FixedClock(), **options
        )
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://router")

    client.gate = gate
    return client


async def echo(scope, receive, send):
    """Answer with what the app sees."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {
        "id": headers.get("x-request-id"),
        "deadline": deadline_var.get(),
        "inflight": None,
        "length": len(body),
    }
    await JSONResponse(seen)(scope, receive, send)


async def unread(scope, receive, send):
    """Be an app that should not have been asked."""
    raise AssertionError("it was asked")


def full():
    raise Overloaded("too much work", 3.0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_work_that_would_be_refused_is_refused_before_it_is_read(serve, lines, path):
    async with serve(unread, admit=full) as client:
        answer = await client.post(path, content=b"no json, and not looked at")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["reason"] == "OVERLOADED"
    assert [line.outcome for line in lines] == ["OVERLOADED"]
    assert serve.gate.inflight == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/tokenize", id="no generation"),
        pytest.param("POST", "/v1/messages", id="errors of another form"),
        pytest.param("GET", "/v1/chat/completions", id="no work"),
    ],
)
async def test_what_is_not_refused_early_gets_through(serve, method, path):
    async with serve(echo, admit=full) as client:
        assert (await client.request(method, path)).status_code == 200


async def test_who_asks_is_known_when_work_is_refused_early(serve):
    seen = []
    async with serve(echo, admit=lambda: seen.append(caller_var.get())) as client:
        headers = {"x-priority": "batch"}
        answer = await client.post("/v1/completions", content=b"abc", headers=headers)
    assert answer.json()["length"] == 3
    assert seen[0].priority.name == "BATCH"


def stream_of(*events):
    async def app(scope, receive, send):
        async def parts():
            for event in events:
                yield event

        await StreamingResponse(parts(), media_type="text/event-stream")(scope, receive, send)

    return app


ERROR = {
    "error": {
        "message": "no group is ready",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
        "reason": "NOT_READY",
    }
}
ERROR_EVENT = f"data: {json.dumps(ERROR)}\n\n"
DONE = "data: [DONE]\n\n"


async def test_request_id_is_passed_on_and_returned(serve):
    async with serve(echo) as client:
        answer = await client.post("/v1/x", headers={"x-request-id": "mine"})
    assert answer.json()["id"] == answer.headers["x-request-id"] == "mine"


async def test_request_id_is_made_when_absent(serve):
    async with serve(echo) as client:
        first, second = [await client.post("/v1/x") for _ in range(2)]
    assert first.json()["id"] == first.headers["x-request-id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"x-request-id": "a b"}, id="id with a space"),
        pytest.param({"x-request-id": "a" * 129}, id="long id"),
        pytest.param({"x-request-timeout-ms": "soon"}, id="timeout is no number"),
        pytest.param({"x-request-timeout-ms": "0"}, id="timeout of 0"),
        pytest.param({"x-request-timeout-ms": "-5"}, id="negative timeout"),
        pytest.param({"x-request-timeout-ms": "1e3"}, id="timeout as float"),
        pytest.param({"x-request-timeout-ms": "9" * 5000}, id="timeout without end"),
        pytest.param({"x-request-timeout-ms": "\u0663".encode()}, id="foreign digits"),
    ],
)
async def test_malformed_metadata_is_a_400(serve, headers):
    async with serve(echo) as client:
        answer = await client.post("/v1/x", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "INVALID_REQUEST"


async def test_timeout_becomes_the_deadline_of_this_request_only(serve):
    async with serve(echo) as client:
        limited = await client.post("/v1/x", headers={"x-request-timeout-ms": "1500"})
        free = await client.post("/v1/x")
    assert (limited.json()["deadline"], free.json()["deadline"]) == (101.5, None)


@pytest.mark.parametrize("size", [0, LIMIT], ids=["empty", "at the limit"])
async def test_body_within_the_limit(serve, size):
    async with serve(echo) as client:
        answer = await client.post("/v1/x", content=b"x" * size)
    assert answer.json()["length"] == size


async def _chunks(total: int):
    for _ in range(total // 512 + 1):
        yield b"x" * 512


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: b"x" * (LIMIT + 1), id="announced"),
        pytest.param(lambda: _chunks(LIMIT), id="chunked, length unknown"),
    ],
)
async def test_body_over_the_limit_is_a_413(serve, content):
    async with serve(echo) as client:
        answer = await client.post("/v1/x", content=content())
        following = await client.post("/v1/x", content=b"ok")
    assert answer.status_code == 413
    assert "router.max_body_bytes" in answer.json()["error"]["message"]
    assert following.status_code == 200


async def test_error_before_the_first_part_keeps_its_status(serve, lines):
    async with serve(stream_of(ERROR_EVENT, DONE)) as client:
        answer = await client.post("/v1/x")
    assert (answer.status_code, answer.json()) == (503, ERROR)
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["retry-after"]) >= 1
    assert [line.outcome for line in lines] == ["NOT_READY"]


async def test_error_in_the_middle_is_an_event_and_then_done(serve, lines):
    first = 'data: {"id": "1"}\n\n'
    async with serve(stream_of(first, ERROR_EVENT, DONE)) as client:
        answer = await client.post("/v1/x")
    assert (answer.status_code, answer.text) == (200, first + ERROR_EVENT + DONE)
    assert [line.outcome for line in lines] == ["NOT_READY"]


async def test_stream_is_passed_on_unchanged(serve, lines):
    parts = ['data: {"id": "1"}\n\n', 'data: {"error_count": 0}\n\n', DONE]
    async with serve(stream_of(*parts)) as client:
        answer = await client.post("/v1/x")
    assert answer.text == "".join(parts)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (line,) = lines
    assert (line.outcome, line.status, line.ttft) == ("ok", "200", 0.0)


@pytest.mark.parametrize(
    ("status", "retries"),
    [(200, False), (400, False), (429, True), (500, False), (503, True)],
)
async def test_retry_after_where_it_helps(serve, status, retries):
    async with serve(JSONResponse({}, status_code=status)) as client:
        answer = await client.post("/v1/x")
    assert ("retry-after" in answer.headers) == retries


async def test_retry_after_of_the_app_wins(serve):
    app = JSONResponse({}, status_code=503, headers={"Retry-After": "9"})
    async with serve(app) as client:
        answer = await client.post("/v1/x")
    assert answer.headers.get_list("retry-after") == ["9"]


async def test_unknown_exception_is_a_500_without_internals(serve, lines):
    async def broken(scope, receive, send):
        raise RuntimeError("secret path /etc/x")

    async with serve(broken) as client:
        answer = await client.post("/v1/x")
        following = await client.post("/v1/x")
    assert answer.status_code == following.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["reason"] == "INTERNAL"
    assert [line.outcome for line in lines] == ["INTERNAL", "INTERNAL"]


async def test_closed_gate_refuses_work_and_shows_pages(serve):
    serve.gate.close("it is shutting down")
    async with serve(echo) as client:
        work = await client.post("/v1/x")
        page = await client.get("/livez")
    assert (work.status_code, page.status_code) == (503, 200)
    assert "shutting down" in work.json()["error"]["message"]


async def test_work_is_counted_while_it_lasts(serve):
    seen = []

    async def app(scope, receive, send):
        seen.append(serve.gate.inflight)
        await JSONResponse({})(scope, receive, send)

    async with serve(app) as client:
        await client.post("/v1/x")
        await client.get("/fleet")
    assert (seen, serve.gate.inflight) == ([1, 0], 0)


async def test_log_line_has_no_content_and_tells_tokens(serve, lines):
    class Usage:
        prompt_tokens = 5
        completion_tokens = 7

    class Metadata:
        final_usage_info = Usage

    async def app(scope, receive, send):
        scope.setdefault("state", {})["request_metadata"] = Metadata
        await JSONResponse({"secret": "text"})(scope, receive, send)

    async with serve(app) as client:
        await client.post("/v1/x", json={"prompt": "secret"}, headers={"x-request-id": "r"})
    (line,) = lines
    assert (line.prompt_tokens, line.completion_tokens, line.ttft) == (5, 7, None)
    assert replace(line, duration=0) == replace(
        line, request_id="r", protocol="rest", method="/v1/x", model="m", duration=0
    )
    assert "secret" not in repr(line)


async def test_disconnect_is_logged_as_cancelled(lines):
    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.disconnect"

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    edge = EdgeMiddleware(app, gate=Gate(), model="m", max_body_bytes=1, clock=FixedClock())
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [], "state": {}}
    await edge(scope, receive, send)
    assert [line.outcome for line in lines] == ["CANCELLED"]


WAITING = ": waiting\n"


class Slow:
    """A streamed answer whose parts come when the test says so."""

    def __init__(self, *parts):
        self.parts = parts
        self.go = asyncio.Semaphore(0)

    async def __call__(self, scope, receive, send):
        async def parts():
            for part in self.parts:
                await self.go.acquire()
                yield part

        await StreamingResponse(parts(), media_type="text/event-stream")(scope, receive, send)


class Client:
    """What a client of one exchange sees, and lets its answer go on at what it sees."""

    def __init__(self, app, interval):
        self.edge = EdgeMiddleware(
            app,
            gate=Gate(),
            model="m",
            max_body_bytes=LIMIT,
            keepalive_interval=interval,
            clock=FixedClock(),
        )
        self.messages = []
        self.came = asyncio.Condition()

    async def send(self, message):
        async with self.came:
            self.messages.append(message)
            self.came.notify_all()

    async def receive(self):
        await asyncio.Event().wait()

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    @property
    def status(self):
        return self.messages[0]["status"]

    async def until(self, condition):
        async with asyncio.timeout(10), self.came:
            await self.came.wait_for(condition)

    def ask(self):
        scope = {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}
        return asyncio.create_task(self.edge(scope, self.receive, self.send))


@pytest.fixture
async def no_leak():
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:  # noqa: ASYNC110  no event
            await asyncio.sleep(0)


async def test_comments_while_waiting_and_in_gaps_then_the_answer_unchanged(no_leak, lines):
    app = Slow("data: 1\n\n", "data: 2\n\n")
    client = Client(app, 0.01)
    asked = client.ask()
    await client.until(lambda: client.text.count(WAITING) >= 2)
    assert client.status == 200
    app.go.release()
    await client.until(lambda: "data: 1" in client.text)
    await client.until(lambda: client.text.endswith(WAITING))
    app.go.release()
    await asked
    assert client.text.replace(WAITING, "") == "data: 1\n\ndata: 2\n\n"
    assert [message["type"] for message in client.messages].count("http.response.start") == 1
    (line,) = lines
    assert (line.outcome, line.ttft) == ("ok", 0.0)


async def test_an_error_after_a_comment_is_an_event(no_leak, lines):
    app = Slow(ERROR_EVENT, DONE)
    client = Client(app, 0.01)
    asked = client.ask()
    await client.until(lambda: WAITING in client.text)
    app.go.release()
    app.go.release()
    await asked
    assert client.status == 200
    assert client.text.replace(WAITING, "") == ERROR_EVENT + DONE
    assert [line.outcome for line in lines] == ["NOT_READY"]


async def test_no_comment_inside_an_event(no_leak, lines):
    app = Slow("data: be", "gin\n\n", DONE)
    client = Client(app, 0.01)
    asked = client.ask()
    app.go.release()
    await client.until(lambda: client.text.endswith("data: be"))
    spoken = client.text.count(WAITING)
    # Several intervals; a comment that came now would be seen below, however late.
    await asyncio.sleep(0.05)
    assert client.text.count(WAITING) == spoken
    app.go.release()
    await client.until(lambda: client.text.endswith(WAITING))
    app.go.release()
    await asked
    assert client.text.replace(WAITING, "") == f"data: begin\n\n{DONE}"


async def test_whole_answers_get_no_comment(no_leak, lines):
    done = asyncio.Event()

    async def app(scope, receive, send):
        await asyncio.sleep(0.05)
        done.set()
        await JSONResponse({})(scope, receive, send)

    client = Client(app, 0.01)
    await client.ask()
    assert client.text == "{}"


async def test_a_cancelled_exchange_leaves_nothing(no_leak, lines):
    client = Client(Slow("data: 1\n\n"), 0.01)
    asked = client.ask()
    await client.until(lambda: WAITING in client.text)
    asked.cancel()
    await asyncio.wait({asked})
    seen = len(client.messages)
    await asyncio.sleep(0.05)
    assert len(client.messages) == seen


@pytest.mark.parametrize(
    ("event", "body"),
    [
        pytest.param(
            {"type": "error", "code": "OVERLOADED", "message": "full", "sequence_number": 0},
            None,
            id="responses",
        ),
        pytest.param(
            {
                "type": "error",
                "error": {"type": "RateLimitError", "message": "full", "reason": "OVERLOADED"},
            },
            {
                "type": "error",
                "error": {"type": "RateLimitError", "message": "full", "reason": "OVERLOADED"},
            },
            id="messages",
        ),
    ],
)
async def test_a_first_error_event_of_other_protocols_has_its_status(serve, lines, event, body):
    async with serve(stream_of(f"event: error\ndata: {json.dumps(event)}\n\n")) as client:
        answer = await client.post("/v1/x")
    assert answer.status_code == 429
    assert "retry-after" in answer.headers
    assert answer.json()["error"]["message"] == "full"
    if body is not None:
        assert answer.json() == body
    assert [line.outcome for line in lines] == ["OVERLOADED"]


async def test_an_unreadable_error_event_is_internal(serve, lines):
    async with serve(stream_of("event: error\ndata: nonsense\n\n")) as client:
        answer = await client.post("/v1/x")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (500, "INTERNAL")


def json_answer(status, content):
    async def app(scope, receive, send):
        await JSONResponse(content, status_code=status)(scope, receive, send)

    return app


def refused(**more):
    return {"error": {**ERROR["error"], "code": 429, "reason": "OVERLOADED", **more}}


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        pytest.param(refused(retry_after=7.2), "8", id="known: whole seconds, not too early"),
        pytest.param(refused(retry_after=0.01), "1", id="never at once"),
        pytest.param(refused(), "1", id="unknown"),
        pytest.param(refused(retry_after="soon"), "1", id="no number"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_retry_after_is_the_errors_own(serve, content, seconds, streamed):
    app = stream_of(f"data: {json.dumps(content)}\n\n", DONE) if streamed else None
    async with serve(app or json_answer(429, content)) as client:
        answer = await client.post("/v1/x")
    assert answer.status_code == 429
    assert answer.headers.get_list("retry-after") == [seconds]
    assert answer.json() == content


async def test_a_page_that_is_no_error_body_has_retry_after_too(serve):
    async with serve(json_answer(503, {"ready": False})) as client:
        answer = await client.get("/readyz")
    assert (answer.json(), answer.headers["retry-after"]) == ({"ready": False}, "1")


async def test_only_what_is_worth_another_try_has_retry_after(serve):
    async with serve(json_answer(400, refused(retry_after=7))) as client:
        answer = await client.post("/v1/x")
    assert "retry-after" not in answer.headers


async def test_an_answer_in_parts_keeps_its_parts(serve):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        for part, more in ((b'{"error": ', True), (b"{}}", False)):
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async with serve(app) as client:
        answer = await client.post("/v1/x")
    assert (answer.status_code, answer.json()) == (503, {"error": {}})
    assert answer.headers["retry-after"] == "1"
