"""gRPC end to end: router, real link, scripted rank. The counterpart of test_rest.py."""

import asyncio
import json
import math

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from serving.api.v1 import fleet_pb2
from serving.api.v1 import inference_pb2 as pb
from serving.link.v1 import link_pb2
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="session")

USER = pb.Message(role=pb.ROLE_USER, content="What is 17+25?")
REASONING, CONTENT = "17+25 is 42", "It is 42"
SERVICES = (
    "serving.api.v1.InferenceService",
    "serving.api.v1.FleetService",
    "serving.api.v1.UsageService",
    "serving.api.v1.BatchService",
)


def chat(**fields) -> pb.ChatRequest:
    return pb.ChatRequest(**{"model": "pocket-r1", "messages": [USER], **fields})


def sampling(**fields) -> pb.SamplingParams:
    return pb.SamplingParams(**fields)


async def failure_of(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _finish(call)
    return caught.value


async def _finish(call) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "moe-serving"
    return info.reason


async def test_chat(edge):
    edge.engine.cached_tokens = 5
    answer = await edge.inference.Chat(chat(return_token_ids=True))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == (pb.ROLE_ASSISTANT, CONTENT)
    assert choice.message.reasoning_content == REASONING
    assert choice.finish_reason == pb.FINISH_REASON_STOP
    usage = answer.usage
    assert (usage.cached_tokens, usage.reasoning_tokens) == (5, len(REASONING))
    assert usage.prompt_tokens == len(answer.prompt_token_ids)
    assert usage.completion_tokens == len(choice.token_ids)


async def test_chat_stream(edge):
    edge.engine.cached_tokens = 5
    messages = [message async for message in edge.inference.ChatStream(chat())]
    deltas = [choice for message in messages for choice in message.choices]
    assert deltas[0].role == pb.ROLE_ASSISTANT
    assert "".join(delta.reasoning_content for delta in deltas) == REASONING
    assert "".join(delta.content for delta in deltas) == CONTENT
    assert deltas[-1].finish_reason == pb.FINISH_REASON_STOP
    assert [message.HasField("usage") for message in messages[-2:]] == [False, True]
    usage = messages[-1].usage
    assert (usage.cached_tokens, usage.reasoning_tokens) == (5, len(REASONING))


async def test_same_answer_as_over_rest(edge):
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": USER.content}],
        "seed": 7,
        "stop": ["zz"],
    }
    await edge.rest.post("/v1/chat/completions", json=body)
    await edge.inference.Chat(chat(sampling=sampling(seed=7, stop=["zz"])))
    over_rest, over_grpc = edge.engine.params
    assert over_grpc == over_rest
    assert edge.engine.prompts[0] == edge.engine.prompts[1]


async def test_two_choices_and_logprobs(edge):
    answer = await edge.inference.Chat(chat(sampling=sampling(n=2), logprobs=True, top_logprobs=2))
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.message.content == CONTENT
        first = choice.logprobs[0]
        assert (first.token, first.logprob, first.token_bytes) == ("1", -0.5, b"1")
        assert len(first.top) == 2


async def test_complete_with_stop_length_and_tokens(edge):
    stopped = await edge.inference.Complete(
        pb.CompleteRequest(model="pocket-r1", text="x", sampling=sampling(stop=["is"]), logprobs=1)
    )
    assert (stopped.choices[0].text, stopped.choices[0].stop_reason) == ("17+25 ", "is")
    assert [logprob.token for logprob in stopped.choices[0].logprobs] == list("17+25 is")
    cut = await edge.inference.Complete(
        pb.CompleteRequest(
            model="pocket-r1", token_ids=pb.TokenIds(ids=[120]), sampling=sampling(max_tokens=3)
        )
    )
    assert cut.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert edge.engine.prompts[1] == "x"


async def test_complete_stream(edge):
    request = pb.CompleteRequest(model="pocket-r1", text="x", sampling=sampling(max_tokens=5))
    messages = [message async for message in edge.inference.CompleteStream(request)]
    text = "".join(choice.text for message in messages for choice in message.choices)
    assert text == "17+25"
    assert messages[-1].usage.completion_tokens == 5


WEATHER = pb.Tool(name="weather", parameters_json='{"type": "object", "properties": {"city": {}}}')
CALL = (
    "look</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Bern"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


async def test_tool_call_round_trip(edge):
    edge.engine.script = CALL
    answer = await edge.inference.Chat(chat(tools=[WEATHER]))
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments_json)) == (
        "weather",
        {"city": "Bern"},
    )
    assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    result = pb.Message(role=pb.ROLE_TOOL, tool_call_id=call.id, content="sunny")
    edge.engine.reset()
    following = await edge.inference.Chat(
        chat(messages=[USER, choice.message, result], tools=[WEATHER])
    )
    assert following.choices[0].message.content == CONTENT
    assert "sunny" in edge.engine.prompts[0]


async def test_tool_call_deltas(edge):
    edge.engine.script = CALL
    name, arguments = "", ""
    async for message in edge.inference.ChatStream(chat(tools=[WEATHER])):
        for choice in message.choices:
            for call in choice.tool_calls:
                name += call.function.name
                arguments += call.function.arguments_json
    assert (name, json.loads(arguments)) == ("weather", {"city": "Bern"})


async def test_json_schema_reaches_the_engine(edge):
    schema = '{"type": "object", "properties": {"z": {}, "a": {}}}'
    response_format = pb.ResponseFormat(
        json_schema=pb.ResponseFormat.JsonSchema(name="x", schema_json=schema)
    )
    await edge.inference.Chat(chat(response_format=response_format))
    constraint = edge.engine.params[0].structured_outputs.json
    text = constraint if isinstance(constraint, str) else json.dumps(constraint)
    assert json.loads(text) == json.loads(schema)
    assert text.index("z") < text.index("a")


async def test_tokenize_and_detokenize(edge):
    tokens = await edge.inference.Tokenize(
        pb.TokenizeRequest(model="pocket-r1", text="17+25", return_token_strings=True)
    )
    assert list(tokens.token_strings) == list("17+25")
    assert tokens.max_model_len == 2048
    text = await edge.inference.Detokenize(
        pb.DetokenizeRequest(model="pocket-r1", token_ids=tokens.token_ids)
    )
    assert text.text == "17+25"
    rendered = await edge.inference.Tokenize(
        pb.TokenizeRequest(model="pocket-r1", messages=pb.Messages(messages=[USER]))
    )
    assert len(rendered.token_ids) > len(USER.content)


async def test_models(edge):
    (model,) = (await edge.inference.ListModels(pb.ListModelsRequest())).models
    assert (model.id, model.max_model_len) == ("pocket-r1", 2048)


async def test_embed_is_unimplemented_and_says_why(edge):
    error = await failure_of(edge.inference.Embed(pb.EmbedRequest(model="pocket-r1", inputs=["x"])))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "embedding" in error.details()
    assert reason_of(error) == "UNSUPPORTED"


INVALID = grpc.StatusCode.INVALID_ARGUMENT
BAD = [
    pytest.param(chat(model="gpt-9"), grpc.StatusCode.NOT_FOUND, id="unknown model"),
    pytest.param(chat(model=""), INVALID, id="no model"),
    pytest.param(chat(sampling=sampling(max_tokens=-1)), INVALID, id="negative max_tokens"),
    pytest.param(chat(sampling=sampling(temperature=-0.5)), INVALID, id="negative temperature"),
    pytest.param(chat(sampling=sampling(temperature=math.nan)), INVALID, id="NaN temperature"),
    pytest.param(chat(sampling=sampling(n=0)), INVALID, id="no choices"),
    pytest.param(chat(sampling=sampling(top_p=2)), INVALID, id="top_p over 1"),
    pytest.param(chat(messages=[]), INVALID, id="empty messages"),
    pytest.param(chat(messages=[pb.Message(content="x")]), INVALID, id="no role"),
    pytest.param(
        chat(messages=[pb.Message(role=pb.ROLE_USER, content="x" * 5000)]),
        INVALID,
        id="over the context",
    ),
    pytest.param(
        chat(
            response_format=pb.ResponseFormat(
                json_schema=pb.ResponseFormat.JsonSchema(schema_json="{")
            )
        ),
        INVALID,
        id="broken schema",
    ),
    pytest.param(
        chat(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        INVALID,
        id="tool choice without tools",
    ),
]


@pytest.mark.parametrize("rpc", ["Chat", "ChatStream"])
@pytest.mark.parametrize(("request_", "code"), BAD)
async def test_bad_input_is_refused_and_the_next_request_works(edge, request_, code, rpc):
    error = await failure_of(getattr(edge.inference, rpc)(request_))
    assert error.code() == code
    assert error.details()
    assert reason_of(error) == (
        "MODEL_NOT_FOUND" if code == grpc.StatusCode.NOT_FOUND else "INVALID_REQUEST"
    )
    assert not edge.engine.prompts
    assert (await edge.inference.Chat(chat())).choices


async def test_bad_field_is_named(edge):
    error = await failure_of(edge.inference.Chat(chat(sampling=sampling(temperature=-0.5))))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in rpc_status.from_call(error).details)
    assert bad.field_violations[0].field == "sampling.temperature"


async def test_message_over_the_limit(edge):
    big = pb.Message(role=pb.ROLE_USER, content="x" * (2**20 + 1))
    error = await failure_of(edge.inference.Chat(chat(messages=[big])))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await edge.inference.Chat(chat())).choices


@pytest.mark.parametrize("hold_after", [0, 3], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("rpc", ["Chat", "ChatStream"])
async def test_cancel_aborts_in_the_engine(edge, rpc, hold_after):
    edge.engine.hold_after = hold_after
    call = getattr(edge.inference, rpc)(chat())
    async with asyncio.timeout(PATIENCE):
        if rpc == "ChatStream" and hold_after:
            await call.read()
        await edge.engine.held.wait()
        call.cancel()
        await edge.engine.quiet.wait()


@pytest.mark.parametrize("rpc", ["Chat", "ChatStream", "Complete", "CompleteStream"])
async def test_deadline_aborts_in_the_engine(edge, rpc):
    edge.engine.hold_after = 2
    request = chat() if "Chat" in rpc else pb.CompleteRequest(model="pocket-r1", text="x")
    error = await failure_of(getattr(edge.inference, rpc)(request, timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(PATIENCE):
        await edge.engine.quiet.wait()


async def test_deadline_in_metadata(edge):
    edge.engine.hold_after = 2
    error = await failure_of(
        edge.inference.Chat(chat(), metadata=(("x-request-timeout-ms", "200"),))
    )
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(error) == "DEADLINE_EXCEEDED"


async def test_expired_deadline_never_reaches_the_engine(edge):
    error = await failure_of(edge.inference.Chat(chat(), timeout=0))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not edge.engine.prompts


async def test_request_id_is_returned(edge):
    call = edge.inference.Chat(chat(), metadata=(("x-request-id", "mine"),))
    assert dict(await call.initial_metadata())["x-request-id"] == "mine"
    assert (await call).id == "chatcmpl-mine"


async def test_malformed_metadata(edge):
    error = await failure_of(
        edge.inference.Chat(chat(), metadata=(("x-request-timeout-ms", "soon"),))
    )
    assert error.code() == INVALID


@pytest.mark.parametrize("rpc", ["Chat", "ChatStream"])
@pytest.mark.parametrize(
    ("code", "status", "retries"),
    [
        (link_pb2.RequestError.INVALID_REQUEST, "INVALID_ARGUMENT", False),
        (link_pb2.RequestError.OVERLOADED, "RESOURCE_EXHAUSTED", True),
    ],
)
async def test_failures_of_the_engine(edge, rpc, code, status, retries):
    edge.engine.error = link_pb2.RequestError(code=code, message="because")
    error = await failure_of(getattr(edge.inference, rpc)(chat()))
    assert (error.code().name, error.details()) == (status, "because")
    retry = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(retry) for detail in rpc_status.from_call(error).details)
    assert found is retries


async def test_fleet_is_the_same_as_over_rest(edge):
    fleet = await edge.fleet.GetFleet(fleet_pb2.GetFleetRequest())
    shown = (await edge.rest.get("/fleet")).json()
    assert fleet.router_id == shown["router_id"]
    # A group that an earlier test fenced is still shown for a while.
    assert [group.epoch for group in fleet.groups] == [group["epoch"] for group in shown["groups"]]
    (group,) = (g for g in fleet.groups if g.state == fleet_pb2.MEMBER_STATE_READY)
    assert group.group_id == "g0"
    assert list(group.ranks[0].local_expert_ids) == list(range(16))


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health(edge, service):
    stub = health_pb2_grpc.HealthStub(edge.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_an_unknown_service(edge):
    stub = health_pb2_grpc.HealthStub(edge.channel)
    error = await failure_of(stub.Check(health_pb2.HealthCheckRequest(service="other")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(edge):
    stub = reflection_pb2_grpc.ServerReflectionStub(edge.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request])):
        names = {service.name for service in answer.list_services_response.service}
        assert {*SERVICES, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize(
    ("path", "streamed"),
    [
        pytest.param("/serving.api.v1.InferenceService/Chat", False, id="one answer"),
        pytest.param("/serving.api.v1.InferenceService/ChatStream", True, id="many answers"),
        pytest.param("/grpc.health.v1.Health/Watch", True, id="watch"),
        pytest.param(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            None,
            id="many requests",
        ),
    ],
)
@pytest.mark.parametrize("content", [b"\xff", b"\x0b" * 200, b"\x0a\x02\xff\xfe"])
async def test_bytes_that_are_no_message_are_the_clients_fault(edge, path, streamed, content):
    if streamed is None:
        call = edge.channel.stream_stream(path)(iter([content]))
    else:
        call = (edge.channel.unary_stream if streamed else edge.channel.unary_unary)(path)(content)
    error = await failure_of(call)
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    await edge.inference.Chat(chat())
