"""Proto to vLLM's request models: set fields are passed on, invalid fields are named."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.errors import BadField
from serving.edge.grpc.messages import json_object
from serving.edge.grpc.requests import (
    chat_request,
    complete_request,
    detokenize_request,
    tokenize_request,
)

USER = pb.Message(role=pb.ROLE_USER, content="What is 17+25?")
WEATHER = pb.Tool(
    name="weather",
    description="Weather of a city",
    parameters_json='{"type": "object", "properties": {"z": {}, "a": {}}}',
    strict=True,
)


def chat(**fields) -> pb.ChatRequest:
    return pb.ChatRequest(**{"model": "pocket-r1", "messages": [USER], **fields})


def complete(**fields) -> pb.CompleteRequest:
    return pb.CompleteRequest(**{"model": "pocket-r1", "text": "1+1=", **fields})


def test_only_what_is_set_is_passed_on():
    request = chat_request(chat(), stream=False)
    assert request.model_fields_set == {"model", "messages"}


def test_a_stream_asks_for_usage():
    request = chat_request(chat(), stream=True)
    assert request.stream
    assert request.stream_options.include_usage


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        pytest.param("temperature", 0.5, "temperature", id="temperature"),
        pytest.param("temperature", 0.0, "temperature", id="zero is set"),
        pytest.param("top_p", 0.25, "top_p", id="top_p"),
        pytest.param("top_k", 3, "top_k", id="top_k"),
        pytest.param("min_p", 0.125, "min_p", id="min_p"),
        pytest.param("frequency_penalty", 0.5, "frequency_penalty", id="frequency"),
        pytest.param("presence_penalty", -0.5, "presence_penalty", id="presence"),
        pytest.param("repetition_penalty", 1.5, "repetition_penalty", id="repetition"),
        pytest.param("max_tokens", 7, "max_completion_tokens", id="max_tokens"),
        pytest.param("min_tokens", 2, "min_tokens", id="min_tokens"),
        pytest.param("n", 2, "n", id="n"),
        pytest.param("seed", -(2**63), "seed", id="seed"),
        pytest.param("stop", ["a", "b"], "stop", id="stop"),
        pytest.param("stop_token_ids", [4], "stop_token_ids", id="stop ids"),
        pytest.param("include_stop_in_output", True, "include_stop_str_in_output", id="keep stop"),
        pytest.param("ignore_eos", True, "ignore_eos", id="ignore_eos"),
        pytest.param("allowed_token_ids", [1, 2], "allowed_token_ids", id="allowed"),
        pytest.param("bad_words", ["no"], "bad_words", id="bad words"),
        pytest.param("skip_special_tokens", False, "skip_special_tokens", id="special tokens"),
    ],
)
def test_sampling_field_reaches_both_requests(field, value, name):
    sampling = pb.SamplingParams(**{field: value})
    assert getattr(chat_request(chat(sampling=sampling), stream=False), name) == value
    completion = complete_request(complete(sampling=sampling), stream=False)
    assert getattr(completion, "max_tokens" if field == "max_tokens" else name) == value


def test_logit_bias_keys_are_token_ids():
    sampling = pb.SamplingParams(logit_bias={5: 2.5})
    assert chat_request(chat(sampling=sampling), stream=False).logit_bias == {"5": 2.5}


def test_conversation_with_tools_and_reasoning():
    request = chat_request(
        chat(
            messages=[
                pb.Message(role=pb.ROLE_SYSTEM, content="Be brief."),
                USER,
                pb.Message(
                    role=pb.ROLE_ASSISTANT,
                    reasoning_content="I need the weather.",
                    tool_calls=[
                        pb.ToolCall(
                            id="call-1",
                            function=pb.FunctionCall(
                                name="weather", arguments_json='{"city": "Bern"}'
                            ),
                        )
                    ],
                ),
                pb.Message(role=pb.ROLE_TOOL, tool_call_id="call-1", content="sunny"),
            ],
            tools=[WEATHER],
            tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
            parallel_tool_calls=False,
        ),
        stream=False,
    )
    assistant, tool = request.messages[2:]
    assert assistant["reasoning"] == "I need the weather."
    assert assistant["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Bern"}',
    }
    assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "call-1", "sunny")
    function = request.tools[0].function
    assert (function.name, function.strict) == ("weather", True)
    assert list(function.parameters["properties"]) == ["z", "a"]
    assert request.tool_choice == "required"
    assert request.parallel_tool_calls is False


def test_tools_without_a_choice_leave_it_to_the_model():
    assert chat_request(chat(tools=[WEATHER]), stream=False).tool_choice == "auto"


def test_named_tool():
    choice = pb.ToolChoice(function_name="weather")
    request = chat_request(chat(tools=[WEATHER], tool_choice=choice), stream=False)
    assert request.tool_choice.function.name == "weather"


SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given_format", "expected"),
    [
        pytest.param(
            pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject()),
            {"json_object": True},
            id="json object",
        ),
        pytest.param(
            pb.ResponseFormat(
                json_schema=pb.ResponseFormat.JsonSchema(schema_json=json.dumps(SCHEMA))
            ),
            {"json": SCHEMA},
            id="json schema",
        ),
        pytest.param(pb.ResponseFormat(regex="[0-9]+"), {"regex": "[0-9]+"}, id="regex"),
        pytest.param(
            pb.ResponseFormat(grammar='root ::= "a"'), {"grammar": 'root ::= "a"'}, id="grammar"
        ),
        pytest.param(
            pb.ResponseFormat(choices=pb.ResponseFormat.Choices(values=["yes", "no"])),
            {"choice": ["yes", "no"]},
            id="choices",
        ),
    ],
)
def test_response_format_becomes_a_constraint(given_format, expected):
    for request in (
        chat_request(chat(response_format=given_format), stream=False),
        complete_request(complete(response_format=given_format), stream=False),
    ):
        constraint = request.extract_structured_outputs()
        assert {name: getattr(constraint, name) for name in expected} == expected


def test_logprobs():
    request = chat_request(chat(logprobs=True, top_logprobs=3), stream=False)
    assert (request.logprobs, request.top_logprobs) == (True, 3)
    assert complete_request(complete(logprobs=0), stream=False).logprobs == 0


def test_template_arguments():
    request = chat_request(
        chat(chat_template_kwargs_json='{"thinking": true}', reasoning_effort="low"), stream=False
    )
    assert request.chat_template_kwargs == {"thinking": True}
    assert request.reasoning_effort == "low"


def test_token_prompt():
    request = pb.CompleteRequest(model="pocket-r1", token_ids=pb.TokenIds(ids=[1, 2, 3]))
    assert complete_request(request, stream=False).prompt == [1, 2, 3]


BAD_CHATS = [
    pytest.param(chat(model=""), "model", id="no model"),
    pytest.param(chat(messages=[]), "messages", id="no messages"),
    pytest.param(chat(messages=[pb.Message(content="x")]), "messages[0].role", id="no role"),
    pytest.param(
        chat(messages=[USER, pb.Message(role=pb.ROLE_TOOL)]),
        "messages[1].tool_call_id",
        id="tool message without its call",
    ),
    pytest.param(
        chat(messages=[pb.Message(role=pb.ROLE_USER, tool_calls=[pb.ToolCall(id="1")])]),
        "messages[0].tool_calls",
        id="tool calls of a user",
    ),
    pytest.param(
        chat(sampling=pb.SamplingParams(temperature=math.nan)),
        "sampling.temperature",
        id="NaN temperature",
    ),
    pytest.param(
        chat(sampling=pb.SamplingParams(top_p=math.inf)), "sampling.top_p", id="infinite top_p"
    ),
    pytest.param(
        chat(sampling=pb.SamplingParams(logit_bias={1: math.nan})),
        "sampling.logit_bias[1]",
        id="NaN bias",
    ),
    pytest.param(chat(top_logprobs=2), "top_logprobs", id="top_logprobs alone"),
    pytest.param(chat(reasoning_effort="huge"), "reasoning_effort", id="unknown effort"),
    pytest.param(
        chat(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        "tool_choice",
        id="required tool without tools",
    ),
    pytest.param(
        chat(tools=[WEATHER], tool_choice=pb.ToolChoice()), "tool_choice", id="empty tool choice"
    ),
    pytest.param(
        chat(tools=[WEATHER], tool_choice=pb.ToolChoice(function_name="other")),
        "tool_choice",
        id="unknown function",
    ),
    pytest.param(chat(tools=[pb.Tool()]), "tools[0].name", id="tool without name"),
    pytest.param(
        chat(tools=[pb.Tool(name="f", parameters_json="{")]),
        "tools[0].parameters_json",
        id="broken parameters",
    ),
    pytest.param(
        chat(chat_template_kwargs_json="[1]"), "chat_template_kwargs_json", id="kwargs no object"
    ),
    pytest.param(
        chat(response_format=pb.ResponseFormat()), "response_format", id="empty response format"
    ),
    pytest.param(
        chat(
            response_format=pb.ResponseFormat(
                json_schema=pb.ResponseFormat.JsonSchema(schema_json="{nope")
            )
        ),
        "response_format.json_schema.schema_json",
        id="broken schema",
    ),
    pytest.param(
        chat(
            response_format=pb.ResponseFormat(
                json_schema=pb.ResponseFormat.JsonSchema(schema_json='{"type": NaN}')
            )
        ),
        "response_format.json_schema.schema_json",
        id="NaN is no JSON",
    ),
]


@pytest.mark.parametrize(("request_", "field"), BAD_CHATS)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_bad_chat_names_the_field(request_, field, stream):
    with pytest.raises(BadField) as caught:
        chat_request(request_, stream=stream)
    assert caught.value.field.split(".function")[0] == field
    assert caught.value.problem


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(pb.CompleteRequest(model="m"), "prompt", id="no prompt"),
        pytest.param(pb.CompleteRequest(model="m", text=""), "text", id="empty text"),
        pytest.param(
            pb.CompleteRequest(model="m", token_ids=pb.TokenIds()), "token_ids", id="no tokens"
        ),
        pytest.param(complete(model=""), "model", id="no model"),
        pytest.param(complete(logprobs=-2), "logprobs", id="negative logprobs"),
    ],
)
def test_bad_completion_names_the_field(request_, field):
    with pytest.raises(BadField) as caught:
        complete_request(request_, stream=False)
    assert caught.value.field == field


def test_tokenize_text_and_messages():
    text = tokenize_request(
        pb.TokenizeRequest(
            model="m", text="hi", add_special_tokens=False, return_token_strings=True
        )
    )
    assert (text.prompt, text.add_special_tokens, text.return_token_strs) == ("hi", False, True)
    messages = tokenize_request(
        pb.TokenizeRequest(
            model="m", messages=pb.Messages(messages=[USER], add_generation_prompt=False)
        )
    )
    assert messages.messages[0]["content"] == USER.content
    assert messages.add_generation_prompt is False
    with pytest.raises(BadField, match="input"):
        tokenize_request(pb.TokenizeRequest(model="m"))


def test_detokenize():
    request = detokenize_request(pb.DetokenizeRequest(model="m", token_ids=[1, 2]))
    assert request.tokens == [1, 2]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _json))
def test_any_json_object_is_read_with_its_order(value):
    read = json_object(json.dumps(value), "f")
    assert (read, list(read)) == (value, list(value))


@given(st.text())
def test_any_other_text_is_refused_as_a_bad_field(text):
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        with pytest.raises(BadField, match=r"^f: "):
            json_object(text, "f")


def test_deeply_nested_json_is_refused():
    with pytest.raises(BadField):
        json_object('{"a":' * 100_000, "f")


_messages = st.lists(
    st.builds(
        pb.Message,
        role=st.sampled_from([pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT]),
        content=st.text(),
        reasoning_content=st.text(),
    ),
    min_size=1,
)


@given(_messages)
def test_messages_arrive_in_order_and_whole(messages):
    request = chat_request(chat(messages=messages), stream=False)
    assert [message["content"] for message in request.messages] == [m.content for m in messages]
    assert [message.get("reasoning") or "" for message in request.messages] == [
        m.reasoning_content for m in messages
    ]
