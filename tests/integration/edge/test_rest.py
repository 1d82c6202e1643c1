"""REST end to end: router, real link, scripted rank."""

import json

import openai
import pytest

from serving.admission.controller import AdmissionController
from serving.errors import BudgetExceeded, NotReady, Overloaded
from serving.link.v1 import link_pb2
from serving.settings import BUNDLED_MODEL
from tests.support.waiting import PATIENCE, in_time

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": "pocket-r1", "messages": [{"role": "user", "content": "What is 17+25?"}]}
REASONING, CONTENT = "17+25 is 42", "It is 42"


async def chat(edge, **fields):
    return await edge.rest.post("/v1/chat/completions", json={**CHAT, **fields})


def events_of(text: str) -> list:
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


async def test_chat_has_reasoning_under_both_names(edge):
    answer = (await chat(edge)).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == REASONING
    assert message["content"] == CONTENT
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_usage_counts_cached_and_reasoning_tokens(edge):
    edge.engine.cached_tokens = 5
    usage = (await chat(edge)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(REASONING)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_stream_has_reasoning_under_both_names(edge):
    answer = await chat(edge, stream=True, stream_options={"include_usage": True})
    events = events_of(answer.text)
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == REASONING
    assert "".join(delta.get("content") or "" for delta in deltas) == CONTENT
    assert events[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(REASONING)


async def test_openai_sdk_streams_reasoning_and_content(edge):
    reasoning, content = "", ""
    async for chunk in await edge.sdk.chat.completions.create(**CHAT, stream=True):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
    assert (reasoning, content) == (REASONING, CONTENT)


async def test_reasoning_content_comes_back_in_a_conversation(edge):
    messages = [
        *CHAT["messages"],
        {"role": "assistant", "content": "42", "reasoning_content": "easy"},
        {"role": "user", "content": "And 1+1?"},
    ]
    assert (await chat(edge, messages=messages)).status_code == 200
    assert "And 1+1?" in edge.engine.prompts[0]


async def test_two_choices(edge):
    completion = await edge.sdk.chat.completions.create(**CHAT, n=2)
    assert [choice.message.content for choice in completion.choices] == [CONTENT] * 2


async def test_logprobs(edge):
    completion = await edge.sdk.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    entries = completion.choices[0].logprobs.content
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in entries)
    assert len(entries) == completion.usage.completion_tokens


async def test_stop_string_and_length(edge):
    stopped = await edge.sdk.completions.create(model="pocket-r1", prompt="x", stop=["is"])
    assert stopped.choices[0].text == "17+25 "
    cut = await edge.sdk.completions.create(model="pocket-r1", prompt="x", max_tokens=3)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("17+", "length")


async def test_sampling_defaults_are_the_models(edge):
    own = json.loads((BUNDLED_MODEL / "generation_config.json").read_text())
    await chat(edge)
    await chat(edge, temperature=0.25)
    default, asked = edge.engine.params
    expected = (own.get("temperature", 1.0), own.get("top_p", 1.0))
    assert (default.temperature, default.top_p) == expected
    assert (asked.temperature, asked.top_p) == (0.25, expected[1])


SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}


async def test_json_schema_reaches_the_engine(edge):
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
    }
    edge.engine.script = 'ok</think>{"z": 1, "a": "b"}'
    completion = await edge.sdk.chat.completions.create(**CHAT, response_format=response_format)
    assert json.loads(completion.choices[0].message.content) == {"z": 1, "a": "b"}
    constraint = edge.engine.params[0].structured_outputs.json
    assert (constraint if isinstance(constraint, dict) else json.loads(constraint)) == SCHEMA


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = (
    "look</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Bern"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


async def test_tool_call_is_parsed(edge):
    edge.engine.script = CALL
    completion = await edge.sdk.chat.completions.create(**CHAT, tools=[TOOL])
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Bern"},
    )
    assert choice.finish_reason == "tool_calls"


async def test_tool_call_is_streamed(edge):
    edge.engine.script = CALL
    name, arguments = "", ""
    async for chunk in await edge.sdk.chat.completions.create(**CHAT, tools=[TOOL], stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("weather", {"city": "Bern"})


async def test_responses(edge):
    response = await edge.sdk.responses.create(model="pocket-r1", input="What is 17+25?")
    assert response.output_text.strip() == CONTENT


async def test_responses_stream(edge):
    text = ""
    async for event in await edge.sdk.responses.create(
        model="pocket-r1", input="What is 17+25?", stream=True
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == CONTENT


MESSAGES = {**CHAT, "max_tokens": 64}


async def test_messages(edge):
    answer = (await edge.rest.post("/v1/messages", json=MESSAGES)).json()
    texts = {block["type"]: block for block in answer["content"]}
    assert texts["thinking"]["thinking"] == REASONING
    assert texts["text"]["text"] == CONTENT


async def test_models_tokenize_detokenize(edge):
    models = await edge.sdk.models.list()
    assert [model.id for model in models.data] == ["pocket-r1"]
    tokens = (await edge.rest.post("/tokenize", json={"prompt": "17+25"})).json()["tokens"]
    text = (await edge.rest.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
    assert text == "17+25"


BAD = [
    pytest.param({**CHAT, "model": "gpt-9"}, 404, id="unknown model"),
    pytest.param({**CHAT, "max_tokens": -1}, 400, id="negative max_tokens"),
    pytest.param({**CHAT, "max_tokens": "many"}, 400, id="max_tokens is text"),
    pytest.param({**CHAT, "temperature": -0.5}, 400, id="negative temperature"),
    pytest.param({**CHAT, "n": 0}, 400, id="no choices"),
    pytest.param({**CHAT, "n": 129}, 400, id="more choices than router.max_choices"),
    pytest.param(
        {**CHAT, "vllm_xargs": {"kv_transfer_params": "x"}}, 501, id="what kills vLLM's front end"
    ),
    pytest.param({**CHAT, "top_p": 2}, 400, id="top_p over 1"),
    pytest.param({"model": "pocket-r1"}, 400, id="no messages"),
    pytest.param({**CHAT, "messages": []}, 400, id="empty messages"),
    pytest.param({**CHAT, "messages": "hi"}, 400, id="messages are text"),
    pytest.param({**CHAT, "messages": [{"content": "x"}]}, 400, id="no role"),
    pytest.param(
        {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}, 400, id="over the context"
    ),
    pytest.param({**CHAT, "response_format": {"type": "json_schema"}}, 400, id="no schema"),
    pytest.param({**CHAT, "structured_outputs": "x"}, 400, id="text for an object"),
    pytest.param({**CHAT, "tool_choice": "required"}, 400, id="tool choice without tools"),
    pytest.param([CHAT], 400, id="a list"),
    pytest.param("text", 400, id="a string"),
    pytest.param(None, 400, id="null"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("body", "status"), BAD)
async def test_bad_input_is_refused_and_the_next_request_works(edge, body, status, stream):
    if isinstance(body, dict) and stream:
        body = {**body, "stream": True}
    answer = await edge.rest.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"]
    assert error["code"] == status
    assert not edge.engine.prompts
    assert (await chat(edge)).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b'{"model": "pocket-r1", ', 400, id="broken JSON"),
        pytest.param(b"", 400, id="empty"),
        pytest.param(bytes(range(256)) * 4000, 400, id="a megabyte of garbage"),
        pytest.param(b"[" * 10_000, 400, id="nesting"),
        pytest.param(b'{"a":' * 10_000, 400, id="nested objects"),
        pytest.param(b"[" * 100_000, 413, id="deep nesting"),
        pytest.param(b'{"a":' * 100_000, 413, id="deep objects"),
        pytest.param(
            json.dumps(CHAT).encode()[:-1] + b', "temperature": NaN}', 400, id="NaN temperature"
        ),
        pytest.param(b" " * (2**20 + 1), 413, id="over the limit"),
    ],
)
async def test_bad_bytes_are_refused_and_the_next_request_works(edge, content, status):
    headers = {"content-type": "application/json"}
    answer = await edge.rest.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert (await chat(edge)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/load_lora_adapter", 405),
        ("POST", "/scale_elastic_ep", 404),
        ("POST", "/start_profile", 404),
        ("POST", "/sleep", 404),
        ("POST", "/score", 404),
        ("POST", "/v1/chat/completions/render", 404),
        ("POST", "/v1/completions/render", 404),
        ("GET", "/docs", 404),
    ],
)
async def test_what_is_not_served_says_so_in_openais_shape(edge, method, path, status):
    answer = await edge.rest.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)


@pytest.mark.parametrize("hold_after", [0, 3], ids=["before the first token", "in the middle"])
async def test_disconnect_aborts_a_stream_in_the_engine(edge, hold_after):
    edge.engine.hold_after = hold_after
    request = edge.rest.build_request(
        "POST", "/v1/completions", json={"model": "pocket-r1", "prompt": "x", "stream": True}
    )
    await _hang_up_when_held(edge, request, stream=hold_after > 0)


async def test_disconnect_aborts_a_whole_answer_in_the_engine(edge):
    edge.engine.hold_after = 3
    request = edge.rest.build_request("POST", "/v1/chat/completions", json=CHAT)
    await _hang_up_when_held(edge, request, stream=False)


async def _hang_up_when_held(edge, request, *, stream):
    import asyncio

    async with asyncio.timeout(PATIENCE):
        if stream:
            answer = await edge.rest.send(request, stream=True)
            await edge.engine.held.wait()
            await answer.aclose()
        else:
            sending = asyncio.create_task(edge.rest.send(request))
            await edge.engine.held.wait()
            sending.cancel()
        await edge.engine.quiet.wait()


async def test_timeout_of_the_request_is_a_504(edge):
    edge.engine.hold_after = 2
    answer = await edge.rest.post(
        "/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "200"}
    )
    assert (answer.status_code, answer.json()["error"]["reason"]) == (504, "DEADLINE_EXCEEDED")


async def test_timeout_in_a_stream_is_an_error_event(edge):
    edge.engine.hold_after = 2

    async def stream(seconds):
        answer = await edge.rest.post(
            "/v1/chat/completions",
            json={**CHAT, "stream": True},
            headers={"x-request-timeout-ms": f"{1000 * seconds:.0f}"},
        )
        assert answer.status_code == 200  # 504: no event came in time
        return answer

    *_, last = events_of((await in_time(stream)).text)
    assert last["error"]["reason"] == "DEADLINE_EXCEEDED"


FAILURES = [
    pytest.param(link_pb2.RequestError.INVALID_REQUEST, 400, "INVALID_REQUEST", id="invalid"),
    pytest.param(link_pb2.RequestError.OVERLOADED, 429, "OVERLOADED", id="overloaded"),
    # It waits for a group that can run it; none joins before its deadline.
    pytest.param(link_pb2.RequestError.ENGINE_FAILED, 504, "DEADLINE_EXCEEDED", id="engine failed"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("code", "status", "reason"), FAILURES)
async def test_failure_at_once_has_its_status(edge, code, status, reason, stream):
    edge.engine.script = "x"
    edge.engine.error = link_pb2.RequestError(code=code, message="because")
    headers = {"x-request-timeout-ms": "500"} if reason == "DEADLINE_EXCEEDED" else {}
    answer = await edge.rest.post(
        "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers
    )
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
    assert ("retry-after" in answer.headers) == (status in {429, 503})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/responses", {"model": "pocket-r1", "input": "hi"}, id="responses"),
        pytest.param("/v1/messages", MESSAGES, id="messages"),
    ],
)
async def test_failure_at_once_has_its_status_in_other_streams_too(edge, path, body):
    edge.engine.script = "x"
    edge.engine.error = link_pb2.RequestError(
        code=link_pb2.RequestError.OVERLOADED, message="because"
    )
    answer = await edge.rest.post(path, json={**body, "stream": True})
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "because")
    assert "retry-after" in answer.headers


DOORS = [
    pytest.param("/v1/chat/completions", CHAT, id="chat"),
    pytest.param("/v1/completions", {"model": "pocket-r1", "prompt": "hi"}, id="completions"),
    pytest.param("/v1/responses", {"model": "pocket-r1", "input": "hi"}, id="responses"),
    pytest.param("/v1/messages", MESSAGES, id="messages"),
]
RETRIES = [
    pytest.param(Overloaded("because", 7.25), 429, "OVERLOADED", "8", id="overloaded"),
    pytest.param(NotReady("because"), 503, "NOT_READY", "1", id="not ready"),
    pytest.param(
        BudgetExceeded("because", renews_at=86400, retry_after=1.5),
        402,
        "BUDGET_EXCEEDED",
        "2",
        id="budget",
    ),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), DOORS)
@pytest.mark.parametrize(("error", "status", "reason", "header"), RETRIES)
async def test_every_door_says_when_to_retry(
    edge, monkeypatch, path, body, stream, error, status, reason, header
):
    async def refuse(*_):
        raise error

    monkeypatch.setattr(AdmissionController, "enter", refuse)
    answer = await edge.rest.post(path, json={**body, "stream": stream})
    found = answer.json()["error"]
    assert (answer.status_code, found["reason"], found["message"]) == (status, reason, "because")
    assert answer.headers["retry-after"] == header
    assert found.get("retry_after") == getattr(error, "retry_after", None)
    renewal = getattr(error, "renews_at", None)
    assert found.get("renews_at") == (None if renewal is None else "1970-01-02T00:00:00Z")


async def test_failure_in_a_stream_is_an_event(edge):
    edge.engine.error = link_pb2.RequestError(
        code=link_pb2.RequestError.INVALID_REQUEST, message="because"
    )
    *_, last = events_of((await chat(edge, stream=True)).text)
    assert (last["error"]["reason"], last["error"]["message"]) == ("INVALID_REQUEST", "because")


async def test_failure_in_a_responses_stream_is_an_event(edge):
    edge.engine.error = link_pb2.RequestError(
        code=link_pb2.RequestError.INVALID_REQUEST, message="because"
    )
    body = {"model": "pocket-r1", "input": "hi", "stream": True}
    answer = await edge.rest.post("/v1/responses", json=body)
    event, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["message"] == "because"


async def test_failure_in_a_messages_stream_is_an_event(edge):
    edge.engine.error = link_pb2.RequestError(
        code=link_pb2.RequestError.INVALID_REQUEST, message="because"
    )
    answer = await edge.rest.post("/v1/messages", json={**MESSAGES, "stream": True})
    event, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "because"


async def test_same_request_id_twice_at_once(edge):
    import asyncio

    answers = await asyncio.gather(
        *(
            edge.rest.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "same"})
            for _ in range(3)
        )
    )
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.json()["id"] for answer in answers} == {"chatcmpl-same"}


async def test_sdk_raises_typed_errors(edge):
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        await edge.sdk.chat.completions.create(**{**CHAT, "model": "gpt-9"})
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await edge.sdk.chat.completions.create(**CHAT, max_tokens=-1)


async def test_pages(edge):
    assert (await edge.rest.get("/livez")).text == "ok\n"
    assert (await edge.rest.get("/readyz")).json()["ready"] is True
    fleet = (await edge.rest.get("/fleet")).json()
    (group,) = fleet["groups"]
    assert (fleet["model"], group["state"], group["total_experts"]) == ("pocket-r1", "ready", 16)
    assert group["ranks"][0]["local_expert_ids"] == list(range(16))
    metrics = await edge.rest.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = [line.split()[2] for line in metrics.text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert {"moe_requests_total", "process_resident_memory_bytes"} <= set(names)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"type": "function", "function": {"name": "weather"}}, id="named"),
        pytest.param("required", id="required"),
    ],
)
async def test_forced_tool_call_is_constrained_and_parsed(edge, choice, stream):
    edge.engine.script = CALL
    answer = await chat(edge, tools=[TOOL], tool_choice=choice, stream=stream)
    if stream:
        deltas = [event["choices"][0]["delta"] for event in events_of(answer.text)]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    else:
        calls = answer.json()["choices"][0]["message"]["tool_calls"]
    assert "".join(call["function"].get("name") or "" for call in calls) == "weather"
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert json.loads(arguments) == {"city": "Bern"}
    # The engine must generate the model's own format of a call.
    assert "weather" in edge.engine.params[0].structured_outputs.structural_tag
