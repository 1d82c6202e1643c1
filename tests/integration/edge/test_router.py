"""States of a router: before any rank, ready, without ranks again, draining, stopped."""

import asyncio

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.errors import SettingsError
from serving.router.app import Router
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_readiness_and_health_follow_the_fleet(router_settings, join_rank):
    router = await Router.start(router_settings())
    async with (
        httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as rest,
        grpc.aio.insecure_channel(router.addresses.grpc) as channel,
    ):
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        assert (await rest.get("/readyz")).status_code == 503
        assert (await rest.get("/readyz?parked=ok")).status_code == 200
        assert (await rest.get("/livez")).status_code == 200
        # Without a group requests are parked, until their deadline.
        for stream in (False, True):
            late = await rest.post(
                "/v1/chat/completions",
                json={**CHAT, "stream": stream},
                headers={"x-request-timeout-ms": "200"},
            )
            assert late.status_code == 504
            assert late.json()["error"]["reason"] == "DEADLINE_EXCEEDED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference.Chat(
                pb.ChatRequest(
                    model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")]
                ),
                metadata=(("x-request-timeout-ms", "200"),),
            )
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

        parked = asyncio.create_task(rest.post("/v1/chat/completions", json=CHAT))
        while not router.client.inflight_requests:  # noqa: ASYNC110  no event says so
            await asyncio.sleep(0.01)
        rank = await join_rank(router, router_settings())
        assert (await parked).status_code == 200
        assert (await watch.read()).status == SERVING
        assert (await rest.get("/readyz")).json()["ready"] is True
        assert (await rest.post("/v1/chat/completions", json=CHAT)).status_code == 200

        await rank.server.stop()
        assert (await watch.read()).status == NOT_SERVING
        ready = await rest.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        watch.cancel()
    await router.stop()


async def test_drain_finishes_what_runs_and_refuses_what_is_new(router_settings, join_rank):
    router = await Router.start(router_settings())
    rank = await join_rank(router, router_settings())
    rank.engine.hold_after = 3
    async with (
        httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as rest,
        grpc.aio.insecure_channel(router.addresses.grpc) as channel,
    ):
        running = asyncio.create_task(rest.post("/v1/chat/completions", json=CHAT))
        await rank.engine.held.wait()
        draining = asyncio.create_task(router.drain(20))
        await asyncio.sleep(0)  # the gate is closed in drain's first step
        assert not router.gate.open
        refused = await rest.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "NOT_READY")
        assert (await rest.get("/readyz")).status_code == 503
        assert (await rest.get("/readyz?parked=ok")).status_code == 503
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference_pb2_grpc.InferenceServiceStub(channel).ListModels(
                pb.ListModelsRequest()
            )
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        rank.engine.release.set()
        assert (await running).status_code == 200
        assert await draining
    await rank.server.stop()
    await router.stop()
    await router.stop()


async def test_drain_sends_channels_elsewhere_before_it_refuses(router_settings):
    router = await Router.start(router_settings())
    async with grpc.aio.insecure_channel(router.addresses.grpc) as channel:
        models = inference_pb2_grpc.InferenceServiceStub(channel).ListModels
        await models(pb.ListModelsRequest())
        (connection,) = router.grpc.server.connections
        assert await router.drain(20)
        assert connection._goaway_sent
        assert connection.refusing  # the client is notified, and has no pending call
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models(pb.ListModelsRequest())  # over a new connection
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await router.stop()


async def test_drain_gives_up_and_stop_cancels(router_settings, join_rank):
    router = await Router.start(router_settings())
    rank = await join_rank(router, router_settings())
    rank.engine.hold_after = 3
    async with httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as rest:
        running = asyncio.create_task(rest.post("/v1/chat/completions", json=CHAT))
        await rank.engine.held.wait()
        assert not await router.drain(0.05)
        await router.stop()
        with pytest.raises(httpx.HTTPError):
            (await running).raise_for_status()
        async with asyncio.timeout(PATIENCE):
            await rank.engine.quiet.wait()
    await rank.server.stop()


@pytest.mark.parametrize(("field", "flag"), [("rest_port", "--port"), ("grpc_port", "--grpc-port")])
async def test_taken_port_is_one_clear_line(edge, router_settings, field, flag):
    taken = getattr(edge.router.addresses, field)
    with pytest.raises(SettingsError, match=flag) as caught:
        await Router.start(router_settings(**{field: taken}))
    assert str(taken) in str(caught.value)
    assert "\n" not in str(caught.value)
