"""gRPC requests with too many values are rejected before they are converted."""

import json

import pytest

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.errors import rpc_error
from serving.edge.value_bounds import MAX_IDS, MAX_VALUES, check_message
from serving.errors import InvalidRequest

USER = pb.Message(role=pb.ROLE_USER, content="hi")
MANY = MAX_VALUES + 1
HALF = json.dumps({"a": [[]] * (MAX_VALUES // 4)})


def chat(**fields):
    return pb.ChatRequest(model="m", messages=[USER], **fields)


def biased():
    request = chat()
    for token in range(MANY):
        request.sampling.logit_bias[token] = 1.0
    return request


TOO_MANY = {
    "messages": lambda: pb.ChatRequest(model="m", messages=[USER] * MANY),
    "empty-messages": lambda: pb.ChatRequest(model="m", messages=[pb.Message()] * MANY),
    "tools": lambda: chat(tools=[pb.Tool(name="f")] * MANY),
    "stop": lambda: chat(sampling=pb.SamplingParams(stop=["s"] * MANY)),
    "stop-ids": lambda: chat(sampling=pb.SamplingParams(stop_token_ids=[1] * MANY)),
    "bias": biased,
    "schema": lambda: chat(tools=[pb.Tool(name="f", parameters_json="[" * MANY)]),
    "schemas": lambda: chat(tools=[pb.Tool(name="f", parameters_json=HALF)] * 3),
    "quotes": lambda: chat(
        tools=[pb.Tool(name="f", parameters_json=text) for text in ('{"', HALF, HALF, HALF)]
    ),
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_values(name):
    with pytest.raises(InvalidRequest, match="more than 16384 values"):
        check_message(TOO_MANY[name](), MAX_VALUES)


@pytest.mark.parametrize("count", [MAX_IDS, MAX_IDS + 1])
def test_token_ids_have_a_limit_of_their_own(count):
    request = pb.CompleteRequest(model="m", token_ids=pb.TokenIds(ids=[70] * count))
    detokenize = pb.DetokenizeRequest(model="m", token_ids=[70] * count)
    for each in (request, detokenize):
        if count <= MAX_IDS:
            check_message(each, MAX_VALUES)
            continue
        with pytest.raises(InvalidRequest, match="token ids"):
            check_message(each, MAX_VALUES)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(pb.CompleteRequest(model="m", text=",[{" * 10**6), id="text"),
        pytest.param(pb.ChatRequest(model="m", messages=[USER] * 4000), id="messages"),
        pytest.param(chat(tools=[pb.Tool(name="f", parameters_json=HALF)]), id="schema"),
        pytest.param(
            chat(tools=[pb.Tool(name="f", parameters_json=json.dumps({"x": "," * 10**6}))]),
            id="text-in-a-schema",
        ),
    ],
)
def test_what_fits(request_):
    check_message(request_, MAX_VALUES)


def test_a_text_of_an_error_is_no_longer_than_clients_take():
    found = rpc_error(InvalidRequest("x " * 10**6))
    assert len(found.status.message) < 2000
    assert found.status.message.endswith("more characters)")
