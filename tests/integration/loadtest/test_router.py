"""Our own router as what is loaded: gRPC's errors, and what its /fleet tells."""

import asyncio

import pytest

from loadtest.fleet_watch import watch
from loadtest.grpc_target import GrpcTarget
from loadtest.rest_target import RestTarget
from loadtest.target import Ask, Message, Style, TargetError
from tests.integration.edge.stand import stand_settings, standing


async def answer(target, **style):
    ask = Ask((Message("user", "hello"),), 3, "s")
    pieces = [piece async for piece in target.send(ask, Style(**{"model": "pocket-r1", **style}))]
    return "".join(piece.text for piece in pieces), pieces[-1].usage


async def test_over_grpc_and_what_happens_to_the_fleet():
    async with standing(stand_settings(), groups=0) as stand:
        addresses = stand.router.addresses
        grpc, rest = GrpcTarget(addresses.grpc), RestTarget(addresses.rest)
        events = []
        watching = asyncio.create_task(watch(rest, lambda: 1.0, events.append))
        try:
            assert await grpc.models() == await rest.models() == ["pocket-r1"]
            for target in (grpc, rest):
                with pytest.raises(TargetError, match=r"no model|does not exist") as refused:
                    await answer(target, model="other")
                assert refused.value.kind == "rejected"
                with pytest.raises(TargetError) as late:
                    await answer(target, timeout=0.3)
                assert late.value.kind in {"timeout", "refused"}
            await stand.join()
            for endpoint in ("chat", "completions"):
                over_grpc = await answer(grpc, endpoint=endpoint)
                over_rest = await answer(rest, endpoint=endpoint)
                assert over_grpc == over_rest
                assert over_grpc[1].output_tokens == 3
            await stand.until(lambda: events, "an event")
            assert events[0].label.startswith("g0 appears")
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            await grpc.close()
            await rest.close()
