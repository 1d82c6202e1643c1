"""A switch from blue to green under load: two routers and fake engines, over real sockets."""

import asyncio
import contextlib
import sys
from dataclasses import dataclass

import pytest
import pytest_asyncio

from serving.client.aio import AsyncRestClient
from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.router.app import Router
from serving.settings import Settings
from tests.bluegreen.traffic import Traffic, connected
from tests.support.waiting import PATIENCE, PATIENT_LINK, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

CLIENTS, PROMPTS, TOKENS, DELAY = 24, 40, 16, 0.01
LEAST = 500
"""Total requests; the switch begins after a third of them."""


@dataclass
class Where:
    rest: str
    grpc: str
    model: str


@dataclass
class Rank:
    engine: FakeEngine
    server: RankServer

    async def leave(self):
        """Drain and stop, as Ray Serve does with a replica."""
        await self.server.drain("the rank is being stopped", PATIENCE)
        await self.stop()

    async def stop(self):
        await self.server.stop()
        await self.engine.shutdown()

    async def idle(self):
        load = await self.engine.load()
        return load.running_requests + load.waiting_requests == 0

    async def has_served(self):
        """Whether it has generated more than the canary's tokens."""
        return (await self.engine.load()).generated_tokens_total > 2 * TOKENS


class System:
    """Two routers, and apps that join both."""

    def __init__(self, routers, stack):
        self.routers = routers
        self.stack = stack

    @property
    def places(self):
        return [Where(r.addresses.rest, r.addresses.grpc, "pocket-r1") for r in self.routers]

    async def app(self, name, groups=1, **engine):
        ranks = [
            await self.rank(name, f"{name}-{group}", number, engine)
            for group in range(groups)
            for number in range(2)
        ]
        await eventually(lambda: self.ready(name) == [groups] * len(self.routers), f"{name} ready")
        return ranks

    async def rank(self, app, group, number, engine):
        settings = Settings(
            engine={"kind": "fake", **engine},
            link={
                "routers": [f"127.0.0.1:{r.addresses.join_port}" for r in self.routers],
                "load_interval": 0.1,
                **PATIENT_LINK,
            },
        )
        engine = FakeEngine(settings, rank=number, token_delay=DELAY)
        await engine.start()
        identity = RankIdentity(group, f"epoch of {group}", number, 2, app=app)
        rank = Rank(engine, RankServer(engine, settings.link, identity))
        self.stack.push_async_callback(rank.stop)
        await rank.server.start()
        return rank

    async def parked(self):
        """Return the number of requests that wait for a group, over all routers."""
        pages = []
        for place in self.places:
            async with AsyncRestClient(place.rest) as client:
                pages.append(await client.get_text("/metrics", PATIENCE))
        return sum(
            float(line.rpartition(" ")[2])
            for page in pages
            for line in page.splitlines()
            if line.startswith("moe_parked_requests ")
        )

    def groups(self, app):
        """Return the app's groups at each router."""
        return [
            [group for group in router.membership.snapshot().groups if group.app == app]
            for router in self.routers
        ]

    def ready(self, app):
        return [sum(group.state == "ready" for group in groups) for groups in self.groups(app)]

    def inflight(self, app):
        return [
            sum(rank.inflight_requests for group in groups for rank in group.ranks)
            for groups in self.groups(app)
        ]

    async def switch(self, *words):
        """Run ``moe-serving switch`` as a process; return its exit code and output."""
        where = [word for place in self.places for word in ("--grpc-address", place.grpc)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving", "switch", *words, *where,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        return process.returncode, output.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def routers():
    settings = Settings(
        router={"rest_port": 0, "grpc_port": 0, "join_port": 0}, engine={"kind": "fake"}
    )
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            found.append(await Router.start(settings))
            stack.push_async_callback(found[-1].stop)
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def system(routers):
    async with contextlib.AsyncExitStack() as stack:
        system = System(routers, stack)
        yield system
    await eventually(
        lambda: not any(router.membership.snapshot().groups for router in routers), "the end of all"
    )


async def test_blue_to_green_under_load_loses_nothing(system):
    blue = await system.app("blue")
    stop = asyncio.Event()
    async with connected(system.places) as lines:
        traffic = Traffic(lines, PROMPTS, TOKENS)
        await traffic.learn()
        flow = asyncio.create_task(traffic.flow(CLIENTS, stop))
        await eventually(lambda: traffic.done > LEAST // 3, "a third of the requests")
        await eventually(lambda: all(system.inflight("blue")), "streams at both routers")
        green = await system.app("green")
        code, output = await system.switch("--from", "blue", "--to", "green", "--timeout", "50")
        assert code == 0, output
        # Every router is switched, and no router has requests left on blue.
        assert system.inflight("blue") == [0, 0], output
        assert [[g.state for g in groups] for groups in system.groups("blue")] == [["draining"]] * 2
        await asyncio.gather(*(rank.leave() for rank in blue))
        await eventually(lambda: not any(system.groups("blue")), "the end of blue")
        await eventually(lambda: traffic.done > LEAST, "all requests")
        stop.set()
        await flow
    assert traffic.lost == []
    assert all([await rank.has_served() for rank in green])
    assert "green has all the traffic" in output


async def test_what_does_not_finish_in_time_goes_on_in_green(system):
    blue = await system.app("blue")
    stop = asyncio.Event()
    async with connected(system.places) as lines:
        traffic = Traffic(lines, PROMPTS, tokens=120)
        await traffic.learn()
        flow = asyncio.create_task(traffic.flow(CLIENTS, stop))
        green = await system.app("green")
        await eventually(lambda: all(system.inflight("blue")), "streams on blue")
        # Requests take seconds, so some have just begun when the command runs.
        code, output = await system.switch("--to", "green", "--timeout", "0.1")
        stop.set()
        await flow
        for rank in blue:
            await eventually(rank.idle, "aborts")
    assert code == 1
    assert "the remaining requests are resumed in green" in output
    assert traffic.lost == []
    assert any([await rank.has_served() for rank in green])


async def test_without_spare_room_requests_park_until_green_is_there(system):
    """Blue is removed before green is deployed; only requests without time to wait are lost."""
    blue = await system.app("blue")
    stop = asyncio.Event()
    async with connected(system.places) as lines:
        traffic = Traffic(lines, PROMPTS, TOKENS)
        await traffic.learn()
        flow = asyncio.create_task(traffic.flow(CLIENTS, stop))
        await eventually(lambda: traffic.done > LEAST // 3, "a third of the requests")
        await eventually(lambda: all(system.inflight("blue")), "streams at both routers")
        await asyncio.gather(*(rank.leave() for rank in blue))
        await eventually(lambda: not any(system.groups("blue")), "the end of blue")
        async with asyncio.timeout(PATIENCE):
            while await system.parked() < CLIENTS:  # noqa: ASYNC110  bounded above
                await asyncio.sleep(0.02)
        done = traffic.done
        hasty = await lines[0].rest.post(
            "/v1/completions",
            json={"model": lines[0].model, "prompt": "x", "max_tokens": 1},
            headers={"x-request-timeout-ms": "200"},
        )
        assert hasty.status_code == 504, hasty.text
        assert traffic.done == done
        green = await system.app("green", max_num_seqs=48)
        await eventually(lambda: traffic.done > LEAST, "all requests")
        stop.set()
        await flow
        assert await system.parked() == 0
    assert traffic.lost == []
    assert all([await rank.has_served() for rank in green])


async def test_a_switch_back_undoes_it(system):
    await system.app("blue")
    await system.app("green")
    assert (await system.switch("--to", "green"))[0] == 0
    assert (system.ready("blue"), system.ready("green")) == ([0, 0], [1, 1])
    code, output = await system.switch("--to", "blue")
    assert code == 0, output
    assert (system.ready("blue"), system.ready("green")) == ([1, 1], [0, 0])


async def test_nothing_is_switched_to_what_is_not_ready_everywhere(system):
    await system.app("blue")
    code, output = await system.switch("--to", "green", "--wait", "0")
    assert code == 1
    assert "nothing was switched" in output
    assert system.ready("blue") == [1, 1]
