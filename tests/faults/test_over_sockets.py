"""A whole router on real ports, gangs of fake ranks over real gRPC, clients over REST and gRPC.

The simulated wire of the random histories is not used here: gRPC itself determines the effects of a
broken socket or a dead peer.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import pytest
import pytest_asyncio

from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.router.app import Router
from serving.settings import Settings
from tests.faults.real.link_proxy import LinkProxy
from tests.faults.real.streams import ask_all, new_run
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT, TOKENS, DELAY = 12, 50, 0.02


@dataclass
class Where:
    """The addresses that ``ask_all`` needs."""

    rest: str
    grpc: str
    model: str


@dataclass
class Rank:
    engine: FakeEngine
    server: RankServer
    proxy: LinkProxy

    async def stop(self):
        await self.server.stop()
        await self.engine.shutdown()
        await self.proxy.stop()

    async def kill(self):
        connections = list(self.server._connections.values())
        tasks = [*(connection._task for connection in connections), *self.server._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def fail(self):
        self.engine.faults.fail_after = 0

    async def drop(self):
        self.proxy.drop()

    async def freeze(self):
        self.proxy.freeze()


class System:
    """A router and its gangs."""

    def __init__(self, router, settings, stack):
        self.router = router
        self.settings = settings
        self.stack = stack
        self.where = Where(router.addresses.rest, router.addresses.grpc, settings.model.name)
        self.ranks = []

    async def gang(self, group):
        ranks = [await self.rank(group, number) for number in range(2)]
        self.ranks.extend(ranks)
        await eventually(lambda: group in self.ready(), f"readiness of {group}")
        return ranks

    async def rank(self, group, number):
        proxy = LinkProxy(self.router.addresses.join_port)
        await proxy.start()
        engine = FakeEngine(self.settings, rank=number, token_delay=DELAY)
        await engine.start()
        link = self.settings.link.model_copy(update={"routers": (f"127.0.0.1:{proxy.port}",)})
        server = RankServer(engine, link, RankIdentity(group, f"epoch {group}", number, 2))
        rank = Rank(engine, server, proxy)
        self.stack.push_async_callback(rank.stop)
        await server.start()
        return rank

    def ready(self):
        return [group.group_id for group in self.router.membership.snapshot().groups
                if group.state == "ready"]  # fmt: skip

    async def ask(self):
        """Run all requests without a fault; return the run."""
        run = new_run(COUNT)
        await ask_all(self.where, run, TOKENS)
        return run

    async def ask_and(self, strike):
        """Run all requests, inject a fault when all have begun, and return the run."""
        run = new_run(COUNT)
        asking = asyncio.create_task(ask_all(self.where, run, TOKENS))
        await eventually(lambda: run.begun(5) == COUNT, "the first tokens of all")
        await strike()
        await asking
        return run

    async def nothing_left(self):
        loads = [await rank.engine.load() for rank in self.ranks]
        fleet = self.router.membership.snapshot()
        return not (
            self.router.client.inflight_requests
            or self.router.gate.inflight
            or fleet.inflight_requests
            or any(load.running_requests + load.waiting_requests for load in loads)
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router():
    settings = Settings(
        router={"rest_port": 0, "grpc_port": 0, "join_port": 0},
        engine={"kind": "fake"},
        link={"keepalive": 1.0, "load_interval": 0.1, "backoff_initial": 0.05, "backoff_max": 0.5},
    )
    router = await Router.start(settings)
    yield router, settings
    await router.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def system(router):
    async with contextlib.AsyncExitStack() as stack:
        system = System(*router, stack)
        yield system
    await eventually(lambda: not router[0].membership.snapshot().groups, "the end of all groups")


@pytest.mark.parametrize("strike", ["kill", "fail", "drop", "freeze"])
async def test_streams_go_on_elsewhere(system, strike):
    lost = await system.gang("a")
    await system.gang("b")
    undisturbed = await system.ask()
    struck = await system.ask_and(getattr(lost[1], strike))
    judge(struck, undisturbed)
    await eventually(system.nothing_left, "the end of all requests")


async def test_streams_wait_for_the_gangs_restart(system):
    lost = await system.gang("c")
    undisturbed = await system.ask()

    async def kill_and_restart():
        await asyncio.gather(*(rank.kill() for rank in lost))
        await system.gang("d")

    struck = await system.ask_and(kill_and_restart)
    judge(struck, undisturbed)
    await eventually(system.nothing_left, "the end of all requests")


def judge(run, undisturbed):
    assert [stream.error for stream in run.streams] == [""] * COUNT
    assert [list(stream.finishes.values()) for stream in run.streams] == [["length"]] * COUNT
    assert [s.texts for s in run.streams] == [s.texts for s in undisturbed.streams]
    assert len({stream.texts[0] for stream in run.streams}) == COUNT
