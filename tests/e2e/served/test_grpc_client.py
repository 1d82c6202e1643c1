"""A Python gRPC client from the committed stubs, against the running system."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc
from serving.api.v1 import inference_pb2 as pb

pytestmark = pytest.mark.e2e

USER = pb.Message(role=pb.ROLE_USER, content="What is 17+25?")
SERVICES = {
    "serving.api.v1.InferenceService",
    "serving.api.v1.FleetService",
    "serving.api.v1.UsageService",
    "serving.api.v1.BatchService",
}
LONG = {"max_tokens": 1500, "ignore_eos": True}


class WithKey(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends a key with every call."""

    def __init__(self, key):
        self.key = key

    def with_key(self, go_on, details, request):
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self.key}")]
        return go_on(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_stream = with_key


@pytest.fixture(scope="module")
def bare_channel(stack):
    with grpc.insecure_channel(stack.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def channel(bare_channel, stack):
    return grpc.intercept_channel(bare_channel, WithKey(stack.key)) if stack.key else bare_channel


@pytest.fixture(scope="module")
def inference(channel):
    return inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture(scope="module")
def chat(stack):
    def build(*, messages=(USER,), **sampling) -> pb.ChatRequest:
        defaults = {"temperature": 0.0, "max_tokens": 256}
        return pb.ChatRequest(
            model=stack.model,
            messages=messages,
            sampling=pb.SamplingParams(**{**defaults, **sampling}),
        )

    return build


def test_stream_gives_the_same_as_the_whole_answer(inference, chat):
    reasoning = content = ""
    usage = finish = None
    for message in inference.ChatStream(chat()):
        usage = message.usage if message.HasField("usage") else usage
        for choice in message.choices:
            reasoning += choice.reasoning_content
            content += choice.content
            finish = choice.finish_reason or finish
    whole = inference.Chat(chat())
    assert reasoning
    assert (whole.choices[0].message.reasoning_content, whole.choices[0].message.content) == (
        reasoning,
        content,
    )
    assert whole.choices[0].finish_reason == finish != pb.FINISH_REASON_UNSPECIFIED
    assert whole.usage == usage
    assert usage.reasoning_tokens > 0


def test_completion_with_logprobs(inference, stack):
    request = pb.CompleteRequest(
        model=stack.model,
        text="abcabc",
        sampling=pb.SamplingParams(temperature=0.0, max_tokens=8, n=1),
        logprobs=2,
    )
    whole = inference.Complete(request)
    assert len(whole.choices[0].logprobs) == whole.usage.completion_tokens
    # Two candidates, plus the chosen one if it is not among them; without duplicates, as over REST.
    assert all(1 <= len(entry.top) <= 3 for entry in whole.choices[0].logprobs)
    text = "".join(
        choice.text for message in inference.CompleteStream(request) for choice in message.choices
    )
    assert text == whole.choices[0].text


def test_constrained_answer(inference, stack):
    answer = inference.Complete(
        pb.CompleteRequest(
            model=stack.model,
            # Constraints hold from the end of the reasoning on.
            text="</think>yes or no: ",
            sampling=pb.SamplingParams(temperature=0.0, max_tokens=64),
            response_format=pb.ResponseFormat(
                choices=pb.ResponseFormat.Choices(values=["yes", "no"])
            ),
        )
    )
    assert answer.choices[0].text in {"yes", "no"}


def test_tokens_and_models(inference, stack):
    tokens = inference.Tokenize(pb.TokenizeRequest(model=stack.model, text="17+25")).token_ids
    text = inference.Detokenize(pb.DetokenizeRequest(model=stack.model, token_ids=tokens)).text
    assert text == "17+25"
    models = inference.ListModels(pb.ListModelsRequest()).models
    assert [model.id for model in models] == [stack.model]


def test_embed_is_unimplemented(inference, stack):
    with pytest.raises(grpc.RpcError) as caught:
        inference.Embed(pb.EmbedRequest(model=stack.model, inputs=["x"]))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_empties_the_engine(inference, chat, eventually_idle):
    call = inference.ChatStream(chat(**LONG))
    next(call)
    call.cancel()
    eventually_idle()


def test_deadline_empties_the_engine(inference, chat, eventually_idle):
    with pytest.raises(grpc.RpcError) as caught:
        inference.Chat(chat(**LONG), timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    eventually_idle()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"model": "gpt-9"}, grpc.StatusCode.NOT_FOUND, id="unknown model"),
        pytest.param(
            {"sampling": pb.SamplingParams(max_tokens=-1)},
            grpc.StatusCode.INVALID_ARGUMENT,
            id="negative max_tokens",
        ),
        pytest.param(
            {"messages": [pb.Message(content="x")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            id="no role",
        ),
        pytest.param(
            {"messages": [pb.Message(role=pb.ROLE_USER, content="x" * 9000)]},
            grpc.StatusCode.INVALID_ARGUMENT,
            id="over the context",
        ),
    ],
)
def test_bad_input_and_the_next_request_works(inference, chat, stack, change, code):
    fields = {"model": stack.model, "messages": [USER], **change}
    with pytest.raises(grpc.RpcError) as caught:
        inference.Chat(pb.ChatRequest(**fields))
    assert caught.value.code() == code
    assert inference.Chat(chat(max_tokens=2)).choices


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed


def test_fleet_shows_experts_and_their_tokens(bare_channel, stack, inference, chat):
    fleet = fleet_pb2_grpc.FleetServiceStub(bare_channel)
    inference.Chat(chat(max_tokens=16))
    access = stack.operator.metadata()
    (group,) = [
        group
        for group in fleet.GetFleet(fleet_pb2.GetFleetRequest(), metadata=access).groups
        if group.state == fleet_pb2.MEMBER_STATE_READY
    ]
    owned = sorted(expert for rank in group.ranks for expert in rank.local_expert_ids)
    assert owned == list(range(group.total_experts))
    assert all(len(rank.expert_tokens) == len(rank.local_expert_ids) for rank in group.ranks)
