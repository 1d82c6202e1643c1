"""The ASGI middleware around vLLM's app, with small apps over httpx's ASGI transport."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse

from serving.edge import value_bounds
from serving.edge.auth.authenticator import Authenticator, principal_var
from serving.edge.auth.keys import digest_of, parse_keys
from serving.edge.gate import DrainGate
from serving.edge.rest import middleware, request_body
from serving.edge.rest.middleware import EdgeMiddleware
from serving.errors import Overloaded
from serving.request_context import current_context, request_context_var
from serving.telemetry import metrics
from tests.support.waiting import PATIENCE, eventually

LIMIT = 2048


class FixedClock:
    """A clock that does not advance."""

    def monotonic(self) -> float:
        return 100.0

    def time(self) -> float:
        return 0.0


@pytest.fixture
def lines(monkeypatch):
    """Log lines of requests."""
    seen = []
    monkeypatch.setattr(middleware, "log_request", seen.append)
    return seen


@pytest.fixture
def serve():
    """Return a function that wraps an app and returns a client for it."""
    gate = DrainGate()

    def client(app, **options) -> httpx.AsyncClient:
        wrapped = EdgeMiddleware(
            app,
            **{"gate": gate, "model": "m", "max_body_bytes": LIMIT, "clock": FixedClock()}
            | options,
        )
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://router")

    client.gate = gate
    return client


async def echo(scope, receive, send):
    """Respond with what the app receives."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {
        "id": headers.get("x-request-id"),
        "deadline": current_context().deadline,
        "inflight": None,
        "length": len(body),
    }
    await JSONResponse(seen)(scope, receive, send)


async def unread(scope, receive, send):
    """An app that must not be called."""
    raise AssertionError("it was asked")


def full():
    raise Overloaded("overloaded", 3.0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_work_that_would_be_refused_is_refused_before_it_is_read(serve, lines, path):
    async with serve(unread, check_load=full) as client:
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
    async with serve(echo, check_load=full) as client:
        assert (await client.request(method, path)).status_code == 200


async def test_who_asks_is_known_when_work_is_refused_early(serve):
    seen = []
    async with serve(echo, check_load=lambda: seen.append(request_context_var.get())) as client:
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


async def test_a_resumption_is_a_comment_before_the_next_event(serve):
    events = [f'data: {{"id": "{number}"}}\n\n' for number in range(5)]

    async def parts():
        record = current_context().record
        for number, event in enumerate(events):
            if number in {2, 4}:
                record.resumes += 1
                record.on_resumed()
            yield event

    async def app(scope, receive, send):
        await StreamingResponse(parts(), media_type="text/event-stream")(scope, receive, send)

    async with serve(app) as client:
        answer = await client.post("/v1/x")
    expected = [*events[:2], ": x-resumed 1\n", *events[2:4], ": x-resumed 2\n", events[4]]
    assert answer.text == "".join(expected)


async def test_a_whole_response_has_no_mark(serve):
    async def app(scope, receive, send):
        current_context().record.on_resumed()
        await JSONResponse({"id": "1"})(scope, receive, send)

    async with serve(app) as client:
        answer = await client.post("/v1/x")
    assert answer.text == '{"id":"1"}'


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

    edge = EdgeMiddleware(app, gate=DrainGate(), model="m", max_body_bytes=1, clock=FixedClock())
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [], "state": {}}
    await edge(scope, receive, send)
    assert [line.outcome for line in lines] == ["CANCELLED"]


WAITING = ": waiting\n"


class Slow:
    """A streamed response whose parts are sent when the test releases them."""

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
    """The client of one request; collects messages, and reacts to them."""

    def __init__(self, app, interval):
        self.edge = EdgeMiddleware(
            app,
            gate=DrainGate(),
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
        async with asyncio.timeout(PATIENCE), self.came:
            await self.came.wait_for(condition)

    def ask(self):
        scope = {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}
        return asyncio.create_task(self.edge(scope, self.receive, self.send))


@pytest.fixture
async def no_leak():
    before = asyncio.all_tasks()
    yield
    await eventually(lambda: not (asyncio.all_tasks() - before - {asyncio.current_task()}))


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
    # Several intervals; a late comment would still be seen below.
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


@pytest.mark.parametrize(
    ("count", "status"),
    [pytest.param(1_500, 200, id="taken"), pytest.param(10_000, 413, id="refused")],
)
async def test_long_bodies_of_many_requests_are_processed_one_a_turn(
    monkeypatch, serve, count, status
):
    """Counting and parsing happen for at most one request per turn of the event loop."""
    turns, steps = [0], []
    counted = value_bounds.JsonBounds.count_some

    def next_turn():
        turns[0] += 1
        asyncio.get_running_loop().call_soon(next_turn)

    def count_some(bounds):
        steps.append(turns[0])
        return counted(bounds)

    async def parses(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        steps.append(turns[0])
        await JSONResponse({})(scope, receive, send)

    monkeypatch.setattr(value_bounds.JsonBounds, "count_some", count_some)
    asyncio.get_running_loop().call_soon(next_turn)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}] * count})
    async with serve(parses, max_body_bytes=10**7) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/chat/completions", content=body) for _ in range(8))
        )
    assert {answer.status_code for answer in answers} == {status}
    assert len(steps) >= 8 * (1 + (status == 413) * 4)
    assert len(set(steps)) == len(steps)


KEY = "moe-key"
RING = parse_keys(f'keys: [{{id: a, tenant: alice, hash: "{digest_of(KEY)}"}}]')
BEARER = {"authorization": f"Bearer {KEY}"}


async def test_work_has_a_caller_and_pages_have_none(serve):
    seen = []

    async def note(scope, receive, send):
        seen.append((principal_var.get().tenant, request_context_var.get()))
        await echo(scope, receive, send)

    async with serve(note, authenticator=Authenticator(lambda: RING, FixedClock())) as client:
        await client.post("/v1/completions", content=b"x", headers=BEARER)
        await client.get("/v1/models", headers=BEARER | {"x-priority": "nonsense"})
    (tenant, work), (_, page) = seen
    assert (tenant, work.tenant) == ("alice", "alice")
    assert page is None


@pytest.mark.parametrize(
    ("method", "path", "headers", "reason"),
    [
        pytest.param("POST", "/v1/completions", {}, "UNAUTHENTICATED", id="no-key"),
        pytest.param("GET", "/fleet", BEARER, "PERMISSION_DENIED", id="no-admin"),
        pytest.param(
            "POST",
            "/v1/completions",
            BEARER | {"x-explain-routing": "1"},
            "PERMISSION_DENIED",
            id="may-not-see",
        ),
    ],
)
async def test_refusals_are_counted(serve, method, path, headers, reason):
    def count():
        labels = {"protocol": "rest", "reason": reason}
        return metrics.REGISTRY.get_sample_value("moe_auth_failures_total", labels) or 0

    before = count()
    async with serve(unread, authenticator=Authenticator(lambda: RING, FixedClock())) as client:
        answer = await client.request(method, path, headers=headers)
    assert answer.json()["error"]["reason"] == reason
    assert count() == before + 1


class HalfBody:
    """A client that sends a body in parts when the test releases them."""

    def __init__(self, app, parts, path="/v1/completions"):
        self.parts = asyncio.Queue()
        for part in parts:
            self.parts.put_nowait({"type": "http.request", "body": part, "more_body": True})
        self.sent = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        self.task = asyncio.create_task(app(scope, self.parts.get, self.send))

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    def finish(self):
        self.parts.put_nowait({"type": "http.request", "body": b"", "more_body": False})


@pytest.fixture
def wrapped():
    def make(**options):
        return EdgeMiddleware(
            echo, gate=DrainGate(), model="m", max_body_bytes=LIMIT, clock=FixedClock(), **options
        )

    return make


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_bodies_that_do_not_end_are_bounded_over_all_connections(wrapped, path):
    app = wrapped(max_pending_bytes=3 * LIMIT)
    slow = [HalfBody(app, [b" " * (LIMIT // 2)] * 2) for _ in range(3)]
    await eventually(lambda: app.pending.used == 3 * LIMIT)
    refused = HalfBody(app, [b"x"], path)
    await refused.task
    assert refused.status == 429
    error = json.loads(refused.sent[1]["body"])["error"]
    assert "security.max_pending_bytes" in error["message"]
    assert (b"retry-after", b"1") in refused.sent[0]["headers"]
    slow[0].finish()
    await slow[0].task
    slow[1].task.cancel()
    await asyncio.wait([slow[1].task])
    assert slow[0].status == 200
    assert app.pending.used == LIMIT
    slow[2].finish()
    await slow[2].task
    assert app.pending.used == 0


async def test_a_body_that_does_not_arrive_in_time_is_refused(monkeypatch, wrapped):
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 0.0)
    late = HalfBody(wrapped(), [b"x"])
    late.parts.get_nowait()
    await late.task
    assert late.status == 408
    assert "did not arrive within" in json.loads(late.sent[1]["body"])["error"]["message"]
