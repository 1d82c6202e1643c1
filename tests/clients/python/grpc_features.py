"""The features of gRPC clients in Python; each client has its own ``open_channel``.

A channel has

- ``unary(service, name, request, metadata=…, timeout=…)``: the answer, and metadata as a dict
- ``stream(service, name, requests, …)``: an asynchronous iterator of answers that is closed with
  ``aclose()``, which cancels the call

and raises ``RpcFailed``. ``open_channel(compressed=…, max_bytes=…, ping=…)`` gives an asynchronous
context manager.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection
from typing import Any

import health_pb2
import reflection_v1_pb2
import reflection_v1alpha_pb2
from frame import KEY, LONG, MODEL, QUESTION, admin_key, feature, narrow_key, some_key
from grpc_code import RpcFailed

from serving.api.v1 import inference_pb2 as pb

OURS = "serving.api.v1.InferenceService"
HEALTH = "grpc.health.v1.Health"
WAIT = 60.0
"""Seconds after which an awaited event counts as lost."""
PARAMETERS = json.dumps(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Bern", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
)
WEATHER = pb.Tool(name="weather", description="Weather", parameters_json=PARAMETERS, strict=True)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 999}},
        "required": ["answer"],
        "additionalProperties": False,
    }
)


def user(text: str = QUESTION) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=text)


def chat(text: str = QUESTION, *, max_tokens: int = 300, **more: Any) -> pb.ChatRequest:
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens)
    sampling.MergeFrom(more.pop("sampling", pb.SamplingParams()))
    messages = more.pop("messages", [user(text)])
    return pb.ChatRequest(model=MODEL, messages=messages, sampling=sampling, **more)


def long(tokens: int = 1500) -> pb.ChatRequest:
    return chat(LONG, max_tokens=tokens, sampling=pb.SamplingParams(ignore_eos=True))


def metadata(key: str = KEY, **more: str | bytes) -> dict[str, str | bytes]:
    given = {name.replace("_", "-"): value for name, value in more.items()}
    return given if key == "none" else {"authorization": f"Bearer {key}", **given}


class Api:
    """The router's API over one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    async def call(self, name: str, request: Any, key: str = KEY, **more: Any) -> Any:
        answer, _ = await self.channel.unary(OURS, name, request, **given(key, more))
        return answer

    async def all(self, name: str, request: Any, **more: Any) -> list[Any]:
        answers = self.channel.stream(OURS, name, [request], **given(KEY, more))
        return [each async for each in answers]

    async def joined(self, request: Any) -> pb.ChatResponse:
        """Return a streamed answer as a complete one."""
        return joined(await self.all("ChatStream", request))


def given(key: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"timeout": WAIT, **more, "metadata": metadata(key, **more.pop("metadata", {}))}


def joined(parts: list[pb.ChatStreamResponse]) -> pb.ChatResponse:
    whole = pb.ChatResponse(model=parts[0].model)
    choices: dict[int, pb.ChatChoice] = {}
    for part in parts:
        whole.prompt_token_ids.extend(part.prompt_token_ids)
        if part.HasField("usage"):
            whole.usage.CopyFrom(part.usage)
        for delta in part.choices:
            choice = choices.setdefault(delta.index, pb.ChatChoice(index=delta.index))
            join(choice, delta)
    assert [
        len(part.choices) == 0 or not part.HasField("usage") or part is parts[-1] for part in parts
    ]
    whole.choices.extend(choices[index] for index in sorted(choices))
    return whole


def join(choice: pb.ChatChoice, delta: pb.ChatChoiceDelta) -> None:
    message = choice.message
    message.role = delta.role or message.role
    message.content += delta.content
    message.reasoning_content += delta.reasoning_content
    for piece in delta.tool_calls:
        if piece.index == len(message.tool_calls):
            message.tool_calls.add()
        call = message.tool_calls[piece.index]
        call.id += piece.id
        call.function.name += piece.function.name
        call.function.arguments_json += piece.function.arguments_json
    choice.finish_reason = delta.finish_reason or choice.finish_reason
    choice.stop_reason += delta.stop_reason
    choice.logprobs.extend(delta.logprobs)
    choice.token_ids.extend(delta.token_ids)


def same(streamed: pb.ChatResponse, whole: pb.ChatResponse) -> None:
    """Check that a stream equals the complete answer, except for random ids."""
    for response in (streamed, whole):
        response.id = ""
        response.created_unix_seconds = 0
        response.usage.cached_tokens = 0
        for choice in response.choices:
            for call in choice.message.tool_calls:
                assert call.id
                call.id = ""
    assert streamed == whole, f"streamed:\n{streamed}\nwhole:\n{whole}"


@contextlib.asynccontextmanager
async def refused(code: str, *, words: bool = True) -> Any:
    """Expect a status and a message; the error is in the yielded list afterwards."""
    caught: list[RpcFailed] = []
    try:
        yield caught
    except RpcFailed as error:
        caught.append(error)
    assert caught, f"nothing refused; wanted {code}"
    assert caught[0].code == code, str(caught[0])
    assert caught[0].words or not words


_TRIALS: list[tuple[str, dict[str, Any], Callable[[Api], Any]]] = []


def trial(name: str, **options: Any) -> Callable[[Any], Any]:
    """Register a function that tries a feature over a channel with options."""

    def add(function: Any) -> Any:
        _TRIALS.append((name, options, function))
        return function

    return add


def try_all(open_channel: Any, without: Collection[str] = ()) -> None:
    """Register all features except some."""
    for name, options, function in _TRIALS:
        if name not in without:
            feature(name)(_over(open_channel, options, function))


def _over(open_channel: Any, options: dict[str, Any], function: Any) -> Any:
    async def run() -> None:
        async with open_channel(**options) as channel:
            await function(Api(channel))

    return run


@trial("grpc.models")
async def models(api: Api) -> None:
    (model,) = (await api.call("ListModels", pb.ListModelsRequest())).models
    assert model.id == MODEL
    assert model.max_model_len > 0


@trial("grpc.whole")
async def whole(api: Api) -> None:
    answer = await api.call("Chat", chat())
    (choice,) = answer.choices
    assert "42" in choice.message.content
    assert choice.message.reasoning_content
    assert "think>" not in choice.message.content + choice.message.reasoning_content
    assert choice.finish_reason == pb.FINISH_REASON_STOP
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.reasoning_tokens < usage.completion_tokens


@trial("grpc.stream")
async def stream(api: Api) -> None:
    request = chat(return_token_ids=True)
    parts = await api.all("ChatStream", request)
    assert len(parts) > 1  # the number depends on how fast the client reads
    assert [part.HasField("usage") for part in parts].index(True) == len(parts) - 1
    same(joined(parts), await api.call("Chat", request))


@trial("grpc.stop")
async def stop(api: Api) -> None:
    for text in ("\n\nZZZZ", "42", "</think>"):
        request = chat(sampling=pb.SamplingParams(stop=[text]))
        answer = await api.call("Chat", request)
        assert text not in answer.choices[0].message.content
        same(await api.joined(request), answer)


@trial("grpc.n")
async def n(api: Api) -> None:
    request = chat(sampling=pb.SamplingParams(n=3, temperature=1, seed=7), max_tokens=40)
    answer = await api.call("Chat", request)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.reasoning_content for choice in answer.choices)
    same(await api.joined(request), answer)


@trial("grpc.logprobs")
async def logprobs(api: Api) -> None:
    request = chat(logprobs=True, top_logprobs=2, max_tokens=12)
    answer = await api.call("Chat", request)
    assert len(answer.choices[0].logprobs) == answer.usage.completion_tokens
    assert all(len(each.top) >= 2 and each.logprob <= 0 for each in answer.choices[0].logprobs)
    streamed = await api.joined(request)
    for response in (answer, streamed):  # runs differ in the last digits
        for each in response.choices[0].logprobs:
            each.logprob = round(each.logprob, 3)
            for top in each.top:
                top.logprob = round(top.logprob, 3)
    same(streamed, answer)


@trial("grpc.tools")
async def tools(api: Api) -> None:
    choices = (
        pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
        pb.ToolChoice(function_name="weather"),
    )
    question = "What is the weather in Bern?"
    for choice in choices:
        request = chat(question, tools=[WEATHER], tool_choice=choice, max_tokens=200)
        answer = await api.call("Chat", request)
        message = pb.Message()
        message.CopyFrom(answer.choices[0].message)
        for call in message.tool_calls:
            assert call.function.name == "weather"
            found = json.loads(call.function.arguments_json)
            assert set(found) == {"city", "days"}, found
        assert message.tool_calls
        same(await api.joined(request), answer)
    back = [
        pb.Message(role=pb.ROLE_TOOL, tool_call_id=call.id, content='{"sky": "blue"}')
        for call in message.tool_calls
    ]
    turns = [user(question), message, *back]
    again = await api.call("Chat", chat(messages=turns, tools=[WEATHER], max_tokens=40))
    assert again.usage.completion_tokens


@trial("grpc.json")
async def structured(api: Api) -> None:
    forms = (
        pb.ResponseFormat(json_schema=pb.ResponseFormat.JsonSchema(schema_json=SCHEMA)),
        pb.ResponseFormat(choices=pb.ResponseFormat.Choices(values=["Bern", "Rome"])),
    )
    for form in forms:
        request = chat(response_format=form)
        answer = await api.call("Chat", request)
        text = answer.choices[0].message.content
        if form.HasField("choices"):
            assert text in {"Bern", "Rome"}, text
        else:
            assert 0 <= json.loads(text)["answer"] <= 999, text
        same(await api.joined(request), answer)


@trial("grpc.complete")
async def complete(api: Api) -> None:
    sampling = pb.SamplingParams(temperature=0, max_tokens=16)
    texts = []
    ids = (await api.call("Tokenize", pb.TokenizeRequest(model=MODEL, text="1, 2, 3"))).token_ids
    for prompt in ({"text": "1, 2, 3"}, {"token_ids": pb.TokenIds(ids=ids)}):
        request = pb.CompleteRequest(
            model=MODEL, sampling=sampling, echo=True, logprobs=1, **prompt
        )
        answer = await api.call("Complete", request)
        parts = await api.all("CompleteStream", request)
        assert len(parts) > 1
        streamed = [choice for part in parts for choice in part.choices]
        assert "".join(choice.text for choice in streamed) == answer.choices[0].text
        tokens = [each.token for choice in streamed for each in choice.logprobs]
        assert tokens == [each.token for each in answer.choices[0].logprobs]
        assert parts[-1].usage.completion_tokens == answer.usage.completion_tokens
        texts.append(answer.choices[0].text)
    assert texts[0].startswith("1, 2, 3")


@trial("grpc.tokenize")
async def tokenize(api: Api) -> None:
    text = "Bern ☺ 😈\n"
    request = pb.TokenizeRequest(model=MODEL, text=text, add_special_tokens=False)
    ids = (await api.call("Tokenize", request)).token_ids
    back = await api.call("Detokenize", pb.DetokenizeRequest(model=MODEL, token_ids=ids))
    assert back.text == text
    rendered = pb.TokenizeRequest(model=MODEL, messages=pb.Messages(messages=[user()]))
    assert (await api.call("Tokenize", rendered)).token_ids


@trial("grpc.unsupported")
async def unsupported(api: Api) -> None:
    async with refused("UNIMPLEMENTED") as caught:
        await api.call("Embed", pb.EmbedRequest(model=MODEL, inputs=["x"]))
    assert caught[0].detail("ErrorInfo").reason == "UNSUPPORTED"


@trial("grpc.key")
async def key(api: Api) -> None:
    some_key()
    for wrong in ("sk-wrong", "none"):
        async with refused("UNAUTHENTICATED") as caught:
            await api.call("Chat", chat(), key=wrong)
        assert caught[0].detail("ErrorInfo").domain == "moe-serving"
        async with refused("UNAUTHENTICATED"):
            async for _ in api.channel.stream(
                OURS, "ChatStream", [chat()], metadata=metadata(wrong), timeout=WAIT
            ):
                pass


@trial("grpc.errors")
async def errors(api: Api) -> None:
    unknown = chat()
    unknown.model = "gpt-9"
    async with refused("NOT_FOUND") as caught:
        await api.call("Chat", unknown)
    info = caught[0].detail("ErrorInfo")
    assert (info.reason, info.domain) == ("MODEL_NOT_FOUND", "moe-serving")
    bad = chat(sampling=pb.SamplingParams(top_p=2))
    async with refused("INVALID_ARGUMENT") as caught:
        await api.call("Chat", bad)
    assert caught[0].detail("ErrorInfo").reason == "INVALID_REQUEST"
    async with refused("INVALID_ARGUMENT") as caught:
        await api.all("ChatStream", chat(sampling=pb.SamplingParams(temperature=-1)))
    (violation,) = caught[0].detail("BadRequest").field_violations
    assert violation.field == "sampling.temperature"


@trial("grpc.metadata")
async def ids(api: Api) -> None:
    more = metadata(
        x_request_id="it-is-mine",
        x_session_id="s",
        other="ü".encode().hex(),
        more_bin=b"\0\xff",
    )
    answer, received = await api.channel.unary(
        OURS, "Chat", chat(max_tokens=4), metadata=more, timeout=WAIT
    )
    assert answer.id == "chatcmpl-it-is-mine"
    assert received["x-request-id"] == "it-is-mine"


@trial("grpc.deadline")
async def deadline(api: Api) -> None:
    async with refused("DEADLINE_EXCEEDED"):
        await api.call("Chat", long(), key=narrow_key(), timeout=1.0)
    await admitted(api)
    async with refused("DEADLINE_EXCEEDED"):
        async for _ in api.channel.stream(
            OURS, "ChatStream", [long()], metadata=metadata(narrow_key()), timeout=1.0
        ):
            pass
    await admitted(api)


@trial("grpc.cancel")
async def cancel(api: Api) -> None:
    more = {"metadata": metadata(narrow_key()), "timeout": WAIT}
    stream = api.channel.stream(OURS, "ChatStream", [long()], **more)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    await admitted(api)
    task = asyncio.ensure_future(api.channel.unary(OURS, "Chat", long(), **more))
    await asyncio.sleep(0.5)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, RpcFailed):
        await task
    await admitted(api)


async def admitted(api: Api) -> None:
    """Check that the narrow key's slot is released."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                await api.call("Chat", chat(max_tokens=2), key=narrow_key())
            except RpcFailed as error:
                if error.code != "RESOURCE_EXHAUSTED":
                    raise
                await asyncio.sleep(0.1)
            else:
                return


@trial("grpc.parallel")
async def parallel(api: Api) -> None:
    requests = [chat(f"What is {n}+25?", max_tokens=16) for n in range(8)]
    one_by_one = [await api.call("Chat", request) for request in requests]
    together = await asyncio.gather(
        *(api.call("Chat", request) for request in requests),
        *(api.joined(request) for request in requests),
    )
    for answer, expected in zip(together, one_by_one * 2, strict=True):
        assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
        assert answer.usage.completion_tokens == expected.usage.completion_tokens


@trial("grpc.compression", compressed=True)
async def compression(api: Api) -> None:
    request = chat(max_tokens=40, return_token_ids=True)
    same(await api.joined(request), await api.call("Chat", request))
    text = "x " * 20_000
    answer = await api.call("Tokenize", pb.TokenizeRequest(model=MODEL, text=text))
    assert len(answer.token_ids) > 10_000


@trial("grpc.large")
async def large(api: Api) -> None:
    text = "Bern " * 200_000  # 1 MB; its answer has the same size
    answer = await api.call("Tokenize", pb.TokenizeRequest(model=MODEL, text=text))
    assert len(answer.token_ids) > 200_000
    async with refused("RESOURCE_EXHAUSTED"):
        await api.call("Tokenize", pb.TokenizeRequest(model=MODEL, text="x" * 5 * 2**20))
    await api.call("ListModels", pb.ListModelsRequest())


@trial("grpc.own_limit", max_bytes=1000)
async def own_limit(api: Api) -> None:
    text = "Bern " * 2000
    async with refused("RESOURCE_EXHAUSTED"):
        await api.call("Tokenize", pb.TokenizeRequest(model=MODEL, text=text))
    await api.call("ListModels", pb.ListModelsRequest())


@trial("grpc.ping", ping=1.0)
async def ping(api: Api) -> None:
    async with asyncio.timeout(WAIT):
        answer = await api.joined(long(300))
    assert answer.usage.completion_tokens == 300
    await asyncio.sleep(2.5)  # and without a call
    await api.call("ListModels", pb.ListModelsRequest())


@trial("grpc.health")
async def health(api: Api) -> None:
    for service in ("", OURS):
        request = health_pb2.HealthCheckRequest(service=service)
        answer, _ = await api.channel.unary(HEALTH, "Check", request, metadata={}, timeout=WAIT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = api.channel.stream(HEALTH, "Watch", [request], metadata={}, timeout=WAIT)
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        await watch.aclose()
    unknown = health_pb2.HealthCheckRequest(service="other")
    async with refused("NOT_FOUND", words=False):  # gRPC's own servicer returns none
        await api.channel.unary(HEALTH, "Check", unknown, metadata={}, timeout=WAIT)


@trial("grpc.reflection")
async def reflection(api: Api) -> None:
    for version, module in (("v1", reflection_v1_pb2), ("v1alpha", reflection_v1alpha_pb2)):
        requests = [
            module.ServerReflectionRequest(list_services=""),
            module.ServerReflectionRequest(file_containing_symbol=OURS),
        ]
        answers = api.channel.stream(
            f"grpc.reflection.{version}.ServerReflection",
            "ServerReflectionInfo",
            requests,
            metadata=metadata(admin_key()),
            timeout=WAIT,
        )
        listed, described = [each async for each in answers]
        assert OURS in {each.name for each in listed.list_services_response.service}
        assert described.file_descriptor_response.file_descriptor_proto
