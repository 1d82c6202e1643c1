"""Load on our own router: errors over gRPC, and events from its /fleet."""

import asyncio

import pytest

from loadtest.fleet_watch import watch
from serving.client.aio import AsyncGrpcClient, AsyncRestClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.errors import ClientError
from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import eventually


async def answer(client, **options):
    request = GenerateRequest((Message("user", "hello"),), 3, "s")
    asked = GenerateOptions(**{"model": "pocket-r1", "temperature": 0.0, **options})
    deltas = [delta async for delta in client.generate(request, asked)]
    return "".join(delta.text for delta in deltas), deltas[-1].usage


async def test_over_grpc_and_what_happens_to_the_fleet():
    async with standing(stand_settings(), groups=0) as stand:
        addresses = stand.router.addresses
        grpc, rest = AsyncGrpcClient(addresses.grpc), AsyncRestClient(addresses.rest)
        events = []
        watching = asyncio.create_task(watch(rest, lambda: 1.0, events.append))
        try:
            assert await grpc.models() == await rest.models() == ["pocket-r1"]
            for client in (grpc, rest):
                with pytest.raises(ClientError, match=r"no model|does not exist") as refused:
                    await answer(client, model="other")
                assert refused.value.kind == "rejected"
                with pytest.raises(ClientError) as late:
                    await answer(client, timeout=0.3)
                assert late.value.kind in {"timeout", "refused"}
            await stand.join()
            for endpoint in ("chat", "completions"):
                over_grpc = await answer(grpc, endpoint=endpoint)
                over_rest = await answer(rest, endpoint=endpoint)
                assert over_grpc == over_rest
                assert over_grpc[1].output_tokens == 3
            await eventually(lambda: events, "an event")
            assert events[0].label.startswith("g0 added")
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            await grpc.close()
            await rest.close()
