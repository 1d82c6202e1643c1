"""The asyncio clients: the same answers over both protocols, and the kind of each failure."""

import json

import grpc
import pytest

from serving.client.aio import AsyncGrpcClient, AsyncRestClient
from serving.client.chat import Delta, GenerateOptions
from serving.client.credentials import Access
from serving.client.errors import ClientError
from tests.unit.client.fake_routers import Inference, asked, chunk, grpc_router, rest_router

REQUEST = asked(("user", "1+1?"), max_tokens=9)
OPTIONS = GenerateOptions("m", temperature=0.0, timeout=20.0)
ANSWER = [Delta(reasoning="hm"), Delta("2")]


async def deltas(client):
    async with client:
        return [delta async for delta in client.generate(REQUEST, OPTIONS)]


async def test_both_protocols_yield_the_same():
    data = chunk({"reasoning": "hm"}) + chunk({"content": "2"}) + b"data: [DONE]\n\n"
    servicer = Inference()
    with rest_router(200, data) as (url, bodies), grpc_router(servicer) as address:
        assert await deltas(AsyncRestClient(f"{url}/v1")) == ANSWER
        assert await deltas(AsyncGrpcClient(address, connections=1)) == ANSWER
    (body,), (request,) = bodies, servicer.requests
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
    assert (request.model, request.sampling.max_tokens) == ("m", 9)


@pytest.mark.parametrize(
    ("status", "data", "kind", "message"),
    [
        (429, b'{"error": {"message": "too much"}}', "refused", "HTTP 429: too much"),
        (503, b"not ready", "refused", "HTTP 503: not ready"),
        (404, b'{"error": {"message": "no model"}}', "rejected", "HTTP 404: no model"),
        (200, b"data: nonsense\n\n", "broken", "invalid chunk"),
        (200, chunk({"content": "2"}), "broken", "without [DONE]"),
    ],
    ids=["too-much", "not-ready", "not-found", "no-chunk", "no-end"],
)
async def test_kinds_of_failures_over_rest(status, data, kind, message):
    with rest_router(status, data) as (url, _), pytest.raises(ClientError) as failed:
        await deltas(AsyncRestClient(url))
    assert (failed.value.kind, failed.value.status) == (kind, status if status != 200 else None)
    assert message in str(failed.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "refused"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "timeout"),
        (grpc.StatusCode.NOT_FOUND, "rejected"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
async def test_kinds_of_failures_over_grpc(code, kind):
    with grpc_router(Inference(code)) as address, pytest.raises(ClientError) as failed:
        await deltas(AsyncGrpcClient(address, connections=1))
    assert (failed.value.kind, failed.value.status) == (kind, None)
    assert str(failed.value) == f"{code.name}: its own words"


@pytest.mark.parametrize(
    "make",
    [lambda: AsyncRestClient("http://127.0.0.1:1"), lambda: AsyncGrpcClient("127.0.0.1:1")],
    ids=["rest", "grpc"],
)
async def test_an_address_without_a_server(make):
    client = make()
    with pytest.raises(ClientError, match="cannot connect to") as failed:
        await deltas(client)
    assert failed.value.kind == "connect"


async def test_json_of_a_post_and_its_refusal():
    answer = json.dumps({"choices": []}).encode()
    with rest_router(200, answer, "application/json") as (url, bodies):
        async with AsyncRestClient(url, Access("secret")) as client:
            assert await client.post_json("/v1/completions", {"a": 1}, 20) == {"choices": []}
        assert bodies == [{"a": 1}]
    with rest_router(500, b'{"error": {"message": "it broke"}}') as (url, _):
        async with AsyncRestClient(url) as client:
            with pytest.raises(ClientError, match="returned HTTP 500: it broke") as failed:
                await client.post_json("/v1/completions", {}, 20)
    assert (failed.value.kind, failed.value.status) == ("rejected", 500)
