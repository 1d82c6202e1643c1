"""Behaviour that various clients, proxies and probes expect from the REST port."""

import asyncio
import gzip
import json
import zlib

import httpx
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import PATIENCE, in_time

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": "pocket-r1", "messages": [{"role": "user", "content": "What is 17+25?"}]}
MESSAGES = {**CHAT, "max_tokens": 100}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
}
CALL = "x</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
BROKEN_JSON = '{"n"\n\n: 42\n}'
CALL_END = "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def data_of(text: str) -> list:
    parts = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(part) for part in parts if part != "[DONE]"]


# -- streamed = whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, ["\n\nZZZZ"], ["zz", "</thinks"]])
async def test_reasoning_streams_as_it_is_returned(edge, stop):
    body = {**CHAT, **({} if stop is None else {"stop": stop})}
    whole = (await edge.rest.post("/v1/chat/completions", json=body)).json()["choices"][0][
        "message"
    ]
    answer = await edge.rest.post("/v1/chat/completions", json={**body, "stream": True})
    deltas = [event["choices"][0]["delta"] for event in data_of(answer.text)]
    for name in ("reasoning", "reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == whole[name]


async def forced(edge, **fields):
    body = {**CHAT, "tools": [TOOL], "tool_choice": "required", **fields}
    return await edge.rest.post("/v1/chat/completions", json=body)


async def test_a_forced_call_with_line_breaks_arrives(edge):
    edge.engine.script = CALL + BROKEN_JSON + CALL_END
    choice = (await forced(edge)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": BROKEN_JSON}
    events = data_of((await forced(edge, stream=True)).text)
    parts = [
        part for event in events for part in event["choices"][0]["delta"].get("tool_calls") or ()
    ]
    assert parts[0]["function"]["name"] == "f"
    assert "".join(part["function"].get("arguments") or "" for part in parts) == BROKEN_JSON
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_cut_off_does_not_claim_a_call(edge, choice, stream):
    edge.engine.script = CALL + BROKEN_JSON + CALL_END
    answer = await forced(edge, tool_choice=choice, max_tokens=12, stream=stream)
    if stream:
        reason = data_of(answer.text)[-1]["choices"][0]["finish_reason"]
    else:
        reason = answer.json()["choices"][0]["finish_reason"]
    assert reason == "length"


async def test_no_call_is_not_claimed(edge):
    edge.engine.script = "x</think>I will not."
    assert (await forced(edge)).json()["choices"][0]["finish_reason"] == "stop"


async def test_forced_calls_are_held_to_compact_objects(edge):
    for tool in (TOOL, {"type": "function", "function": {"name": "g", "parameters": {}}}):
        await forced(edge, tools=[tool])
        tag = edge.engine.params[-1].structured_outputs.structural_tag
        assert '"json_schema": true' not in tag
        assert '"type": "grammar"' in tag


async def test_hidden_reasoning_still_comes_before_a_grammar(edge, monkeypatch):
    seen = []
    generate = edge.engine.generate

    def noting(work):
        seen.append(work.reasoning_ended)
        return generate(work)

    monkeypatch.setattr(edge.engine, "generate", noting)
    fields = {"response_format": {"type": "json_object"}, "include_reasoning": False}
    edge.engine.script = "hm</think>{}"
    answer = await edge.rest.post("/v1/chat/completions", json={**CHAT, **fields})
    message = answer.json()["choices"][0]["message"]
    assert (seen, message["content"], message.get("reasoning")) == ([False], "{}", None)


# -- responses ------------------------------------------------------------------------------------


async def test_a_truncated_response_ends_as_incomplete(edge):
    body = {"model": "pocket-r1", "input": "x", "stream": True, "max_output_tokens": 4}
    events = data_of((await edge.rest.post("/v1/responses", json=body)).text)
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == 4


async def test_a_response_that_waits_begins_before_it_fails():
    settings = stand_settings(router={"keepalive_interval": 0.05})
    body = {"model": "pocket-r1", "input": "x", "stream": True}
    async with standing(settings, groups=0) as stand, httpx.AsyncClient(timeout=PATIENCE) as client:
        url = f"{stand.router.addresses.rest}/v1/responses"

        async def waiting(seconds):
            timeout = {"x-request-timeout-ms": f"{1000 * seconds:.0f}"}
            answer = await client.post(url, json=body, headers=timeout)
            assert answer.status_code == 200  # 504: no event came in time
            return answer

        types = [event["type"] for event in data_of((await in_time(waiting)).text)]
        assert types == ["response.created", "response.in_progress", "error"]
        refused = await client.post(url, json={**body, "temperature": -1})
        assert refused.status_code == 400


# -- pages ----------------------------------------------------------------------------------------


async def test_one_model(edge):
    (card,) = (await edge.rest.get("/v1/models")).json()["data"]
    answer = await edge.rest.get("/v1/models/pocket-r1")
    changing = {"permission": 0, "created": 0}  # vLLM makes both for each answer
    assert answer.json() | changing == card | changing
    assert (await edge.sdk.models.retrieve("pocket-r1")).id == "pocket-r1"
    missing = await edge.rest.get("/v1/models/some/other")
    assert (missing.status_code, missing.json()["error"]["reason"]) == (404, "MODEL_NOT_FOUND")
    assert "pocket-r1" in missing.json()["error"]["message"]


PAGES = (
    "/livez /readyz /health /ping /metrics /fleet /load /version /v1/models /v1/models/pocket-r1 "
    "/openapi.json"
)


@pytest.mark.parametrize("path", PAGES.split())
async def test_head_where_there_is_get(edge, path):
    got, head = await edge.rest.get(path), await edge.rest.head(path)
    assert got.status_code == head.status_code == 200
    assert head.content == b""


async def test_openapi_names_what_is_served(edge):
    document = (await edge.rest.get("/openapi.json")).json()
    assert document["info"]["title"] == "moe-serving"
    for path, operations in document["paths"].items():
        for method in operations:
            sent = path.replace("{response_id}", "x").replace("{model_id}", "x")
            answer = await edge.rest.request(method, sent, json={})
            if path.startswith(("/v1/files", "/v1/batches")):
                # Served by a router with this setting.
                assert answer.status_code == 501
                assert "batch.directory" in answer.text
                continue
            assert answer.status_code not in {405, 500, 501}
            assert answer.status_code != 404 or "{" in path
    assert (await edge.rest.get("/load")).json() == {"server_load": 0}


async def test_redirects_have_no_host(edge):
    answer = await edge.rest.get("/v1/models/pocket-r1?x=1")
    assert answer.status_code == 200
    answer = await edge.rest.get("/livez/?x=1", headers={"host": "inside:1"})
    assert (answer.status_code, answer.headers["location"]) == (307, "/livez?x=1")


# -- other origins --------------------------------------------------------------------------------

ORIGIN = {"origin": "https://chat.example.com"}
ASKED = {**ORIGIN, "access-control-request-method": "POST"}


async def test_other_origins_are_closed_until_opened(edge):
    answer = await edge.rest.options("/v1/chat/completions", headers=ASKED)
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (400, False)


@pytest.mark.parametrize("allowed", ["https://chat.example.com", "*"])
async def test_an_opened_origin_reads_everything(allowed):
    settings = stand_settings(router={"cors_origins": (allowed,), "max_body_bytes": 2048})
    async with standing(settings, groups=1) as stand, httpx.AsyncClient(timeout=PATIENCE) as client:
        url = f"{stand.router.addresses.rest}/v1/chat/completions"
        answers = {
            200: await client.options(
                url, headers={**ASKED, "access-control-request-private-network": "true"}
            ),
            413: await client.post(url, headers=ORIGIN, content=b"x" * 4096),
            404: await client.post(url, headers=ORIGIN, json={**CHAT, "model": "other"}),
        }
        streamed = await client.post(
            url, headers=ORIGIN, json={**CHAT, "max_tokens": 2, "stream": True}
        )
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == allowed
        assert allowed == "*" or "origin" in answer.headers["vary"].lower()
    assert answers[200].headers["access-control-allow-private-network"] == "true"
    assert streamed.headers["access-control-allow-origin"] == allowed
    assert "x-request-id" in streamed.headers["access-control-expose-headers"]


# -- bodies, streams, errors ----------------------------------------------------------------------

ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_compressed_bodies(edge, encoding, path):
    sent = ENCODERS[encoding](json.dumps(MESSAGES).encode())
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    assert (await edge.rest.post(path, content=sent, headers=headers)).status_code == 200
    bomb = ENCODERS[encoding](b" " * (2 * 2**20))
    assert (await edge.rest.post(path, content=bomb, headers=headers)).status_code == 413
    broken = await edge.rest.post(path, content=sent[:-4], headers=headers)
    assert (broken.status_code, broken.json()["error"]["reason"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("content-encoding", "zstd")], id="unknown"),
        pytest.param([("content-encoding", "gzip")] * 2, id="two headers"),
    ],
)
async def test_an_unknown_encoding_says_which_are_known(edge, headers):
    answer = await edge.rest.post("/v1/chat/completions", content=b"x", headers=headers)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


async def test_streams_tell_proxies_to_pass_them_on(edge):
    answer = await edge.rest.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


async def test_running_usage_names_cached_tokens(edge):
    edge.engine.cached_tokens = 5
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "pocket-r1", "prompt": "x"}),
    ):
        events = []
        while len(events) <= 3:  # a busy router merges the deltas of a stream
            answer = await edge.rest.post(
                path, json={**body, "stream": True, "stream_options": options}
            )
            assert answer.status_code == 200
            events = data_of(answer.text)
        for event in events[2:]:
            assert event["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}),
        ("/v1/completions", {"prompt": "\udfff"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "\ud83d"}], "max_tokens": 4}),
        ("/tokenize", {"prompt": "\ud83d"}),
    ],
)
async def test_half_a_surrogate_pair_is_named(edge, path, body):
    content = json.dumps({"model": "pocket-r1", **body}).encode()
    headers = {"content-type": "application/json"}
    answer = await edge.rest.post(path, content=content, headers=headers)
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]
    assert "U+FFFD" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"max_tokens": "x"}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"model": "other"}, 404, "not_found_error"),
        ({"temperature": 9}, 400, "invalid_request_error"),
        (None, 400, "invalid_request_error"),
    ],
)
async def test_messages_errors_have_anthropics_shape(edge, change, status, kind):
    content = b"{" if change is None else json.dumps({**MESSAGES, **change}).encode()
    answer = await edge.rest.post(
        "/v1/messages", content=content, headers={"content-type": "application/json"}
    )
    error = answer.json()
    assert (answer.status_code, error["type"], error["error"]["type"]) == (status, "error", kind)
    assert error["error"]["message"]
    assert "code" not in error["error"]


@pytest.mark.parametrize("stream", [False, True])
async def test_disabled_thinking_is_not_shown(edge, stream):
    body = {**MESSAGES, "thinking": {"type": "disabled"}, "stream": stream}
    answer = await edge.rest.post("/v1/messages", json=body)
    if stream:
        events = data_of(answer.text)
        kinds = {e["content_block"]["type"] for e in events if e["type"] == "content_block_start"}
    else:
        kinds = {block["type"] for block in answer.json()["content"]}
    assert kinds == {"text"}


async def test_an_old_client_can_stream(edge):
    address = edge.router.addresses.rest.removeprefix("http://")
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({**CHAT, "stream": True}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    async with asyncio.timeout(PATIENCE):
        head, _, events = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: ")
    assert events.endswith(b"data: [DONE]\n\n")


# -- request ids of Anthropic's SDKs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/messages", MESSAGES, 200),
        ("POST", "/v1/messages", {**MESSAGES, "stream": True}, 200),
        ("POST", "/v1/messages", {**MESSAGES, "model": "claude-9"}, 404),
        ("POST", "/v1/messages", {**MESSAGES, "max_tokens": "x"}, 400),
        ("POST", "/v1/messages", {**MESSAGES, "system": "x" * 2**20}, 413),
        ("POST", "/v1/messages/count_tokens", CHAT, 200),
        ("POST", "/v1/messages/batches", {}, 404),
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/models/claude-9", None, 404),
    ],
)
async def test_anthropics_sdks_find_the_request_id(edge, method, path, body, status):
    headers = {"anthropic-version": "2023-06-01", "x-request-id": "mine"}
    answer = await edge.rest.request(method, path, json=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"
    if status != 200 and path.startswith("/v1/messages"):
        assert answer.json()["request_id"] == "mine"


async def test_other_clients_have_one_request_id(edge):
    answer = await edge.rest.post("/v1/chat/completions", json=CHAT)
    assert "request-id" not in answer.headers
