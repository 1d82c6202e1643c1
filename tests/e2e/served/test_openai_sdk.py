"""The OpenAI SDK against the running system: real engines, real model.

The model is tiny: its answers are checked elsewhere, form and protocol here.
"""

import json

import httpx
import openai
import pytest

from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is 17+25?"}]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["answer"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOWHERE = {"structured_outputs": {"grammar": "root ::= root"}, "thinking_token_budget": 0}


@pytest.fixture(scope="module")
def client(stack):
    url, key = f"{stack.rest}/v1", stack.key or "none"
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client, stack):
    """Send a greedy request."""

    def ask(**options):
        defaults = {"model": stack.model, "messages": QUESTION, "temperature": 0}
        return client.chat.completions.create(**{**defaults, "max_tokens": 256, **options})

    return ask


def test_streamed_reasoning_and_content(ask):
    reasoning = content = ""
    usage = None
    for chunk in ask(stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
    assert reasoning
    assert usage.completion_tokens_details.reasoning_tokens > 0
    assert usage.prompt_tokens > 0
    whole = ask()
    assert (whole.choices[0].message.reasoning_content or "") == reasoning
    assert (whole.choices[0].message.content or "") == content


def test_two_choices_with_logprobs(ask):
    completion = ask(n=2, temperature=0.8, max_tokens=8, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice in completion.choices:
        assert len(choice.logprobs.content) > 0
        for entry in choice.logprobs.content:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 3


def test_stop_string_is_left_out(client, stack):
    request = {"model": stack.model, "prompt": "abcabc", "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(**request).choices[0].text
    stop = whole[4:6]
    stopped = client.completions.create(**request, stop=[stop]).choices[0]
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_json_schema_is_held(ask):
    completion = ask(
        max_tokens=512,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        },
    )
    answer = json.loads(completion.choices[0].message.content)
    assert set(answer) == {"answer"}
    assert 0 <= answer["answer"] <= 999


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"type": "function", "function": {"name": "weather"}}, id="named"),
        pytest.param("required", id="required"),
    ],
)
def test_tool_call_round_trip(ask, choice):
    question = [{"role": "user", "content": "What is the weather in Bern?"}]
    options = {"tools": [WEATHER], "max_tokens": 512}
    first = ask(**options, messages=question, tool_choice=choice)
    message = first.choices[0].message
    (call, *_) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in {"Bern", "Rome"}
    following = ask(
        **options,
        messages=[
            *question,
            {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
    )
    assert following.choices[0].finish_reason in {"stop", "length"}


def test_reasoning_content_is_accepted_in_a_conversation(ask):
    completion = ask(
        messages=[
            *QUESTION,
            {"role": "assistant", "content": "42", "reasoning_content": "17+25 is 42"},
            {"role": "user", "content": "What is 1+1?"},
        ]
    )
    assert completion.choices


def test_responses(client, stack):
    response = client.responses.create(
        model=stack.model, input="What is 17+25?", temperature=0, max_output_tokens=256
    )
    assert response.usage.output_tokens > 0
    types = [
        event.type
        for event in client.responses.create(
            model=stack.model,
            input="What is 17+25?",
            temperature=0,
            max_output_tokens=256,
            stream=True,
        )
    ]
    assert (types[0], types[-1]) == ("response.created", "response.completed")


def test_messages(http, stack):
    body = {"model": stack.model, "messages": QUESTION, "max_tokens": 256, "temperature": 0}
    answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 200
    assert {block["type"] for block in answer.json()["content"]} <= {"thinking", "text"}


def test_models_and_tokens(client, http, stack):
    assert [model.id for model in client.models.list()] == [stack.model]
    tokens = http.post("/tokenize", json={"prompt": "17+25"}).json()["tokens"]
    text = http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text == "17+25"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        pytest.param({"model": "gpt-9"}, openai.NotFoundError, id="unknown model"),
        pytest.param({"max_tokens": -1}, openai.BadRequestError, id="negative max_tokens"),
        pytest.param(
            {"messages": [{"role": "user", "content": "x" * 9000}]},
            openai.BadRequestError,
            id="over the context",
        ),
        pytest.param({"temperature": "hot"}, openai.BadRequestError, id="wrong type"),
        pytest.param({"extra_body": NOWHERE}, openai.BadRequestError, id="grammar without words"),
    ],
)
def test_bad_input_and_the_next_request_works(ask, options, error):
    with pytest.raises(error) as caught:
        ask(**options)
    assert caught.value.message
    assert ask(max_tokens=2).choices


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"model": ', id="broken JSON"),
        pytest.param(bytes(range(256)) * 4096, id="a megabyte of garbage"),
    ],
)
def test_bad_bytes_and_the_next_request_works(ask, http, content):
    kind = {"content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=content, headers=kind)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]
    assert ask(max_tokens=2).choices


def test_disconnect_empties_the_engine(stack, eventually_idle):
    body = {"model": stack.model, "prompt": "abc", "max_tokens": 1500, "ignore_eos": True}
    with (
        # A separate client, because its connection is closed.
        httpx.Client(base_url=stack.rest, headers=stack.headers, timeout=PATIENCE) as http,
        http.stream("POST", "/v1/completions", json={**body, "stream": True}) as part,
    ):
        next(part.iter_lines())
    eventually_idle()
