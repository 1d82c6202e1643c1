"""The lifecycle of a rank with a fake engine and a real server: load, join, drain, stop."""

import asyncio
import contextlib
from http import HTTPStatus

import grpc.aio
import httpx
import pytest

from serving.clock import SystemClock
from serving.engine.rank import DataParallelAddress, Rank
from serving.engine.router_link.node_drain import serving_ranks
from serving.engine.router_link.server import RankIdentity
from serving.errors import EngineError, SettingsError
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.settings import Settings
from tests.support.waiting import PATIENCE

HERE = "127.0.0.1"
IDENTITY = RankIdentity("g0", "e1", 0, 1, HERE, started_at=12.5, app="blue")


class Router(link_pb2_grpc.RouterServiceServicer):
    """Welcomes a rank and records its messages."""

    def __init__(self):
        self.hello = asyncio.get_running_loop().create_future()
        self.drained = asyncio.get_running_loop().create_future()

    async def Join(self, messages, context):  # noqa: N802  gRPC names it
        async for message in messages:
            if message.HasField("hello"):
                self.hello.set_result(message.hello)
                yield link_pb2.RouterMessage(welcome=link_pb2.Welcome(router_id="r"))
            if message.HasField("drain"):
                self.drained.set_result(message.drain.reason)


@pytest.fixture
async def router():
    server = grpc.aio.server()
    made = Router()
    link_pb2_grpc.add_RouterServiceServicer_to_server(made, server)
    made.address = f"{HERE}:{server.add_insecure_port(f'{HERE}:0')}"
    await server.start()
    yield made
    await server.stop(None)


@pytest.fixture(autouse=True)
def own_leave_folder(monkeypatch, tmp_path):
    """Tests must not see each other's ranks and requests to leave."""
    monkeypatch.setattr("serving.engine.router_link.node_drain.FOLDER", tmp_path / "ranks")


@contextlib.asynccontextmanager
async def rank_with(**fields):
    fields = {"group": {"data_parallel": 1}} | fields
    settings = Settings(engine={"kind": "fake"}, **fields)
    rank = Rank(settings, IDENTITY, DataParallelAddress(HERE, 0), SystemClock())
    try:
        yield rank
    finally:
        await rank.stop("the test is over")


async def test_a_rank_joins_serves_drains_and_leaves_nothing(router):
    async with rank_with(
        link={"routers": [router.address]}, telemetry={"rank_metrics_port": 19400}
    ) as rank:
        assert rank.status() == {}
        with pytest.raises(EngineError, match="not running"):
            await rank.check_health()
        await rank.load()
        await rank.check_health()
        await rank.join()
        async with asyncio.timeout(PATIENCE):
            hello = await router.hello
        assert (hello.group_id, hello.epoch, hello.world_size) == ("g0", "e1", 1)
        assert (hello.epoch_started_unix_seconds, hello.app) == (12.5, "blue")
        page = f"http://{hello.metrics_address}/metrics"
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            assert (await client.get(page)).status_code == HTTPStatus.OK
            assert router.address in rank.status()["routers"]
            assert len(serving_ranks()) == 1
            await rank.stop("it is being stopped")
            async with asyncio.timeout(PATIENCE):
                assert await router.drained == "it is being stopped"
            with pytest.raises(httpx.ConnectError):
                await client.get(page)
        assert serving_ranks() == []
        assert rank.status() == {}
        await rank.stop("once more")


async def test_a_rank_that_cannot_join_stops_its_engine():
    async with rank_with(link={"routers": ["no-port"]}) as rank:
        await rank.load()
        with pytest.raises(SettingsError, match=r"link\.routers"):
            await rank.join()
        await rank.stop("it could not join")
        with pytest.raises(EngineError, match="not running"):
            await rank.check_health()


async def test_an_engine_that_takes_too_long_is_an_error_that_names_the_setting(monkeypatch):
    class Slow:
        async def start(self):
            await asyncio.Event().wait()

        async def shutdown(self):
            """No process is running."""

    monkeypatch.setattr("serving.engine.rank.make_engine", lambda *_: Slow())
    async with rank_with(group={"start_timeout": 0.01}) as rank:
        with pytest.raises(EngineError, match=r"within 0\.01 s \(group\.start_timeout\)"):
            await rank.load()
