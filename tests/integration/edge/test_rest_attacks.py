"""Requests that could lose text, get no error reason, or flood the log: one test for each kind."""

import asyncio
import json
import logging
import re

import pytest

from tests.integration.edge.contract_cases import (
    CALLS,
    CHAT,
    INPUT_TOOL,
    MESSAGE,
    RESPONSE,
    TEXT,
    TOOL,
)
from tests.integration.edge.test_rest_clients import data_of
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLS_TEXT = CALLS.partition("</think>")[2]
JSON_TYPE = {"content-type": "application/json"}


async def posted(edge, path: str, body: dict, **fields):
    return await edge.rest.post(path, json={**body, **fields})


def blocks_of(events: list) -> list[dict]:
    """Join a message's events to its blocks; the input of a call stays text."""
    blocks: list[dict] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "input": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            for part, name in (("text",) * 2, ("thinking",) * 2, ("partial_json", "input")):
                if part in delta:
                    block[name] += delta[part]
    return blocks


# -- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [{}, {"tools": []}])
async def test_without_tools_a_message_has_no_calls_and_loses_nothing(edge, tools):
    edge.engine.script = CALLS
    whole = (await posted(edge, "/v1/messages", MESSAGE, **tools, max_tokens=200)).json()
    events = data_of(
        (await posted(edge, "/v1/messages", MESSAGE, **tools, max_tokens=200, stream=True)).text
    )
    text = {"type": "text", "text": CALLS_TEXT}
    assert (whole["content"][1], whole["stop_reason"]) == (text, "end_turn")
    assert blocks_of(events)[1] == {**text, "input": ""}
    assert events[-2]["delta"]["stop_reason"] == "end_turn"


@pytest.mark.parametrize("kind", ["any", "tool"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_cannot_be_forced_without_tools(edge, kind, stream):
    choice = {"type": kind, "name": "weather"}
    answer = await posted(edge, "/v1/messages", MESSAGE, tool_choice=choice, stream=stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "tools is missing" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "reason", "blocks"),
    [
        ("{broken}", "end_turn", 1),
        ("[1]", "end_turn", 1),
        ("", "tool_use", 2),
        ("{}", "tool_use", 2),
    ],
)
async def test_a_message_claims_calls_that_are_whole(edge, arguments, reason, blocks):
    edge.engine.script = (
        "look</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    whole = (await posted(edge, "/v1/messages", MESSAGE, tools=[INPUT_TOOL])).json()
    streamed = await posted(edge, "/v1/messages", MESSAGE, tools=[INPUT_TOOL], stream=True)
    assert (whole["stop_reason"], len(whole["content"])) == (reason, blocks)
    assert data_of(streamed.text)[-2]["delta"]["stop_reason"] == reason
    if reason == "tool_use":
        assert whole["content"][1]["input"] == {}


@pytest.mark.parametrize(
    ("inputs", "stop", "reason"),
    [
        (['{"a":1}', '{"b":2}'], "}", ("stop_sequence", "}")),
        (['{"a":1}', '{"b":2}'], "2}", ("stop_sequence", "2}")),
        (["[1]"], "zzz", ("end_turn", None)),
        (["[1]"], "calls▁end", ("stop_sequence", "calls▁end")),
        (["{}", "[1]"], "zzz", ("tool_use", None)),
        (["", '{"a":1}'], "1", ("stop_sequence", "1")),
        (['{"a":1}', ""], "end▁of", ("tool_use", None)),
    ],
)
async def test_a_message_says_what_ended_it(edge, inputs, stop, reason):
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{each}\n```<｜tool▁call▁end｜>"
        for each in inputs
    )
    edge.engine.script = f"look</think><｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
    edge.engine.cached_tokens = 3
    body = {**MESSAGE, "tools": [INPUT_TOOL], "stop_sequences": [stop], "max_tokens": 500}
    whole = (await posted(edge, "/v1/messages", body)).json()
    events = data_of((await posted(edge, "/v1/messages", body, stream=True)).text)
    delta = events[-2]["delta"]
    assert (whole["stop_reason"], whole["stop_sequence"]) == reason
    assert (delta["stop_reason"], delta["stop_sequence"]) == reason
    begun, ended = events[0]["message"]["usage"], events[-2]["usage"]
    for name in ("input_tokens", "cache_read_input_tokens"):
        assert begun[name] == ended[name] == whole["usage"][name]
    assert begun["cache_read_input_tokens"] == 3


@pytest.mark.parametrize(
    ("arguments", "stop", "reason"),
    [
        (['{"city":"Rome"}'], "Rome", "stop"),
        (['{"city":"Bern"}', '{"city":"Rome"}'], "Rome", "stop"),
        (['{"city":"Rome"}'], "```json", "stop"),
        (['{"city":"Rome"}'], "call▁end", "tool_calls"),
        (['{"city":"Bern"}', '{"city":"Rome"}'], "\n```<｜tool▁call▁end｜>\n", "tool_calls"),
        (['{"city":"Rome"}'], "zzz", "tool_calls"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("parallel", [True, False])
async def test_a_call_that_a_stop_string_cuts_off_is_not_claimed(
    edge, arguments, stop, reason, choice, parallel
):
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{each}\n```<｜tool▁call▁end｜>"
        for each in arguments
    )
    edge.engine.script = f"look</think><｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
    body = {**CHAT, "tools": [TOOL], "tool_choice": choice, "stop": [stop], "n": 2}
    body |= {"temperature": 0.7, "parallel_tool_calls": parallel}
    whole = (await posted(edge, "/v1/chat/completions", body)).json()["choices"]
    events = data_of((await posted(edge, "/v1/chat/completions", body, stream=True)).text)
    streamed = {
        each["index"]: each["finish_reason"]
        for event in events
        for each in event["choices"]
        if each["finish_reason"]
    }
    if not parallel and len(arguments) > 1:
        reason = streamed[0]  # the call that was cut off is not shown
    assert [each["finish_reason"] for each in whole] == list(streamed.values()) == [reason] * 2


# -- hidden reasoning -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"logprobs": True, "top_logprobs": 2}, id="logprobs"),
        pytest.param({"logprobs": True, "return_tokens_as_token_ids": True}, id="token-names"),
        pytest.param({"return_token_ids": True}, id="token-ids"),
        pytest.param({"enable_response_messages": True}, id="messages"),
        pytest.param({"include": ["message.output_text.logprobs"]}, id="logprobs-of-text"),
        pytest.param({"stop": ["</think>"]}, id="stopped"),
        pytest.param({"max_tokens": 5, "max_output_tokens": 5}, id="truncated"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "chat/completions/batch", "responses"])
async def test_hidden_reasoning_is_in_no_field(edge, path, stream, fields):
    edge.engine.script = "SECRET words</think>It is 42"
    if path == "responses":
        fields = {name: value for name, value in fields.items() if name != "logprobs"}
    elif path.endswith("batch") and stream:
        stream = False
    body = {"responses": RESPONSE, "chat/completions/batch": BATCH}.get(path, CHAT)
    answer = await posted(
        edge, f"/v1/{path}", body, include_reasoning=False, stream=stream, **fields
    )
    assert answer.status_code == 200, answer.text
    tokens = [83, 69, 67]  # the model has a token for each byte
    for leaked in ("SECRE", '"S"', str(tokens)[1:-1].replace(" ", ""), "token_id:83"):
        assert leaked not in answer.text


# -- batches of chats -----------------------------------------------------------------------------

BATCH = {**CHAT, "messages": [CHAT["messages"]] * 2}


@pytest.mark.parametrize("fields", [{"stream": True}, {"tools": [TOOL]}])
async def test_batches_refuse_what_they_would_drop(edge, fields):
    answer = await posted(edge, "/v1/chat/completions/batch", BATCH, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *fields)


async def test_batches_have_a_maximum_size(edge):
    many = {"messages": [CHAT["messages"]] * 513}
    answer = await posted(edge, "/v1/chat/completions/batch", BATCH, **many)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "BadRequestError")
    assert "at most 512 conversations" in answer.json()["error"]["message"]


async def test_batches_name_reasoning_as_chats_do(edge):
    answer = (await posted(edge, "/v1/chat/completions/batch", BATCH)).json()
    for choice in answer["choices"]:
        assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] != ""


# -- responses ------------------------------------------------------------------------------------


async def test_log_probabilities_of_a_response_are_those_of_its_text(edge):
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    whole = (await posted(edge, "/v1/responses", RESPONSE, **wanted)).json()["output"]
    streamed = data_of((await posted(edge, "/v1/responses", RESPONSE, **wanted, stream=True)).text)
    (part,) = whole[1]["content"]
    assert "".join(each["token"] for each in part["logprobs"]) == part["text"]
    assert streamed[-1]["response"]["output"][1]["content"][0]["logprobs"] == part["logprobs"]
    deltas = [event for event in streamed if event["type"] == "response.output_text.delta"]
    assert "".join(each["token"] for e in deltas for each in e["logprobs"]) == part["text"]
    assert [item["status"] for item in whole] == ["completed", "completed"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_without_parts_in_a_response_is_the_clients_error(edge, stream):
    item = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": []}
    answer = await posted(edge, "/v1/responses", RESPONSE, input=[item], stream=stream)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert "has the wrong type" in answer.json()["error"]["message"]


async def test_a_field_that_breaks_a_validator_is_the_clients_error(edge):
    answer = await posted(edge, "/v1/chat/completions", CHAT, messages=1)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert "has the wrong type" in answer.json()["error"]["message"]


# -- texts ----------------------------------------------------------------------------------------


async def test_an_echoed_prompt_brings_its_tokens_when_asked(edge):
    for asked in (False, True):
        body = {"echo": True, "return_token_ids": asked}
        (choice,) = (await posted(edge, "/v1/completions", TEXT, **body)).json()["choices"]
        streamed = await posted(edge, "/v1/completions", TEXT, **body, stream=True)
        given = [event["choices"][0].get("prompt_token_ids") for event in data_of(streamed.text)]
        assert next((each for each in given if each), None) == choice["prompt_token_ids"]
        assert (choice["prompt_token_ids"] is not None) is asked


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [(CHAT, "chat.completion"), (TEXT, "text_completion"), ({"model": "pocket-r1"}, None)],
)
async def test_invocations_are_what_their_fields_say(edge, body, kind):
    whole = await posted(edge, "/invocations", body)
    streamed = await posted(edge, "/invocations", body, stream=True)
    if kind is None:
        assert whole.status_code == streamed.status_code == 400
    else:
        assert whole.json()["object"] == kind
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("body", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{}, {"x-amzn-sagemaker-adapter-identifier": "pocket-r1"}])
async def test_an_invocation_is_for_the_model_that_it_names(edge, body, stream, headers):
    answer = await edge.rest.post(
        "/invocations", json={**body, "model": "other", "stream": stream}, headers=headers
    )
    assert answer.status_code == 404
    assert "other" in answer.json()["error"]["message"]


async def test_an_echoed_message_is_streamed_as_text(edge):
    said = {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("So", "it is")]}
    body = {
        **CHAT,
        "messages": [*CHAT["messages"], said],
        "echo": True,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    whole = (await edge.rest.post("/v1/chat/completions", json=body)).json()
    streamed = await edge.rest.post("/v1/chat/completions", json={**body, "stream": True})
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in streamed.text.splitlines()
        if line.startswith("data: {")
    ]
    content = "".join(delta.get("content") or "" for delta in deltas)
    assert content == whole["choices"][0]["message"]["content"]
    assert content.startswith("So\nit is")


async def test_a_slash_behind_models_is_no_name(edge):
    models = (await edge.rest.get("/v1/models/")).json()["data"]
    assert [model["id"] for model in models] == ["pocket-r1"]
    assert (await edge.rest.get("/v1/models/pocket-r1/")).json()["id"] == "pocket-r1"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 10_000, "nested too deeply"),
        (b'{"model":"\xff"}', "not valid utf-8"),
        ('{"model":"\u2200"}'.encode("utf-16"), "must be JSON in UTF-8"),
        ('{"model":"x"}'.encode("utf-32-le"), "must be JSON in UTF-8"),
        (b'{"seed":' + b"9" * 5_000 + b"}", "digits"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said(edge, path, content, words):
    answer = await edge.rest.post(path, content=content, headers=JSON_TYPE)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


# -- offers of another protocol -------------------------------------------------------------------

OFFER = (
    b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"
    b"upgrade: h2c\r\n"
)
BODY = json.dumps({**CHAT, "max_tokens": 3}).encode()
LAST = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def offering(body: bytes, *, chunked: bool) -> bytes:
    """Return a request as Java's HTTP client writes the first one of a connection."""
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    cut = len(body) // 2
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:], b""))
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + OFFER
        + length
        + b"\r\n\r\n"
        + (parts if chunked else body)
    )


async def raw_answers(edge, sent: bytes, step: int) -> bytes:
    """Send bytes in parts over one connection; return the response."""
    host, _, port = edge.router.addresses.rest.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(PATIENCE):
        for begin in range(0, len(sent), step):
            writer.write(sent[begin : begin + step])
            await asyncio.sleep(0)
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("step", [40, 10**6])
async def test_an_offer_of_http2_costs_no_body(edge, chunked, step):
    sent = offering(BODY, chunked=chunked) * 2 + offering(b"{}", chunked=chunked) + LAST
    answers = await raw_answers(edge, sent, step)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", answers)
    assert statuses == [b"200", b"200", b"400", b"200"]
    assert answers.count(b'"object":"chat.completion"') == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_long_body_behind_an_offer_of_http2_arrives_whole(edge, chunked):
    body = BODY[:-1] + b" " * 10_000 + b"}"
    answers = await raw_answers(edge, offering(body, chunked=chunked) + LAST, 10**6)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200"]
    assert answers.count(b'"object":"chat.completion"') == 1


async def test_a_page_may_offer_http2(edge):
    page = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + OFFER + b"\r\n"
    assert (await raw_answers(edge, page + LAST, 10**6)).count(b"HTTP/1.1 200") == 2


# -- log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "stop_token_ids": [10**9]}),
        ("/v1/completions", {**TEXT, "stop_token_ids": [10**9]}),
        ("/v1/messages", {**MESSAGE, "temperature": json.loads("Infinity")}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_client_did_wrong_leaves_no_traceback(edge, path, body, stream):
    seen: list[logging.LogRecord] = []

    class Seeing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler, log = Seeing(), logging.getLogger("vllm")
    log.addHandler(handler)
    try:
        answer = await edge.rest.post(
            path, content=json.dumps({**body, "stream": stream}), headers=JSON_TYPE
        )
    finally:
        log.removeHandler(handler)
    assert answer.status_code == 400
    assert [record.getMessage() for record in seen if record.exc_info] == []
