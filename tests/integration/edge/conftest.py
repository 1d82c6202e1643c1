"""A whole router in this process, on real ports, and one scripted rank over the real link."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio

from serving.api.v1 import fleet_pb2_grpc, inference_pb2_grpc
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.link.protocol import model_fingerprint
from serving.router.app import Router
from serving.settings import Settings
from tests.integration.edge.scripted_engine import ScriptedEngine
from tests.support.waiting import PATIENCE, PATIENT_LINK

MODEL = "pocket-r1"
FREE_PORTS = {"rest_port": 0, "grpc_port": 0, "join_port": 0}


def router_settings(**router) -> Settings:
    """Settings with free ports."""
    return Settings(router={**FREE_PORTS, **router}, engine={"kind": "fake"}, link=PATIENT_LINK)


@dataclass
class Rank:
    """A scripted rank that joins a router."""

    engine: ScriptedEngine
    server: RankServer

    @classmethod
    async def join(cls, router: Router, settings: Settings, group: str = "g0") -> "Rank":
        engine = ScriptedEngine(settings, model_fingerprint(settings.model.path))
        link = settings.link.model_copy(update={"routers": (router.addresses.join,)})
        identity = RankIdentity(group, f"epoch-{group}", 0, 1, "127.0.0.1")
        rank = cls(engine, RankServer(engine, link, identity))
        await rank.server.start()
        await until(router, ready=True)
        return rank


async def until(router: Router, *, ready: bool) -> None:
    """Wait until the fleet is ready, or not ready."""
    changed = asyncio.Event()
    unsubscribe = router.membership.subscribe(changed.set)
    try:
        async with asyncio.timeout(PATIENCE):
            while router.membership.ready is not ready:
                changed.clear()
                await changed.wait()
    finally:
        unsubscribe()


@dataclass
class Edge:
    """The router, its rank and its clients."""

    router: Router
    rank: Rank
    rest: httpx.AsyncClient
    sdk: openai.AsyncOpenAI
    channel: grpc.aio.Channel

    @property
    def engine(self) -> ScriptedEngine:
        return self.rank.engine

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def fleet(self) -> fleet_pb2_grpc.FleetServiceStub:
        return fleet_pb2_grpc.FleetServiceStub(self.channel)


@pytest.fixture(scope="session", name="router_settings")
def _router_settings():
    return router_settings


@pytest.fixture(scope="session")
def join_rank():
    return Rank.join


@pytest.fixture(scope="session")
def settings() -> Settings:
    return router_settings(max_body_bytes=2**20)


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="shared_edge")
async def _shared_edge(settings) -> AsyncIterator[Edge]:
    router = await Router.start(settings)
    rank = await Rank.join(router, settings)
    async with (
        httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as rest,
        openai.AsyncOpenAI(
            base_url=f"{router.addresses.rest}/v1", api_key="none", max_retries=0
        ) as sdk,
        grpc.aio.insecure_channel(router.addresses.grpc) as channel,
    ):
        yield Edge(router, rank, rest, sdk, channel)
    await rank.server.stop()
    await router.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def edge(shared_edge) -> AsyncIterator[Edge]:
    shared_edge.engine.reset()
    await until(shared_edge.router, ready=True)  # the previous test may have fenced it
    yield shared_edge
    # A request that outlives its test would be a leak.
    async with asyncio.timeout(PATIENCE):
        await shared_edge.engine.quiet.wait()
    # A client can have its answer (an expired deadline) before the server has cleaned up.
    assert await shared_edge.router.gate.wait_idle(60)
