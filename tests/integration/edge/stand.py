"""A complete router in this process, on real ports, and fake ranks on real links."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.router.app import Router
from serving.settings import Settings
from tests.support.waiting import PATIENT_LINK, eventually

_LOOKS = 200


def stand_settings(**groups: Any) -> Settings:
    """Settings with free ports and a fake engine; each argument overrides one group's fields."""
    router = {"rest_port": 0, "grpc_port": 0, "join_port": 0} | groups.pop("router", {})
    engine = {"kind": "fake", "max_model_len": 512} | groups.pop("engine", {})
    link = {"load_interval": 0.1, "backoff_initial": 0.05} | PATIENT_LINK | groups.pop("link", {})
    group = {"data_parallel": 1} | groups.pop("group", {})
    return Settings(router=router, engine=engine, link=link, group=group, **groups)


@dataclass
class Stand:
    """A router and the groups that have joined it."""

    router: Router
    settings: Settings
    engines: list[FakeEngine] = field(default_factory=list)
    servers: list[RankServer] = field(default_factory=list)

    async def join(
        self,
        group: str = "g0",
        *,
        token_delay: float = 0.0,
        step: int = 1,
        settings: Settings | None = None,
    ) -> None:
        """Start a group of fake ranks, and wait until it is ready.

        ``settings``: those of a pool; by default those of the router.
        """
        settings = settings or self.settings
        size = settings.group.data_parallel
        link = settings.link.model_copy(update={"routers": (self.router.addresses.join,)})
        ready = len(self.ready_groups()) + 1
        for rank in range(size):
            engine = FakeEngine(settings, rank=rank, token_delay=token_delay)
            await engine.start()
            identity = RankIdentity(group, f"epoch-{step}", rank, size, "127.0.0.1")
            server = RankServer(engine, link, identity)
            await server.start()
            self.engines.append(engine)
            self.servers.append(server)
        await eventually(lambda: len(self.ready_groups()) >= ready, f"readiness of {group}")

    async def leave(self) -> None:
        """Stop all ranks."""
        servers, self.servers = self.servers, []
        for server in servers:
            await server.stop()
        for engine in self.engines:
            await engine.shutdown()
        self.engines.clear()
        await eventually(lambda: not self.ready_groups(), "the loss of the groups")

    @property
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of the REST routes."""
        app: Any = self.router.rest.config.app
        while not hasattr(app, "openapi"):
            app = getattr(app, "_app", None) or app.app
        document: dict[str, Any] = app.openapi()
        return document

    def ready_groups(self) -> list[str]:
        """Names of the groups that accept requests."""
        groups = self.router.models.fleet.snapshot().groups
        return [group.group_id for group in groups if group.state == "ready"]

    @property
    def engine_requests(self) -> int:
        """Number of requests in the engines, running or waiting."""
        return sum(len(engine._requests) for engine in self.engines)

    @property
    def running(self) -> int:
        """Number of running requests in the engines."""
        return sum(
            request.running for engine in self.engines for request in engine._requests.values()
        )

    @property
    def idle(self) -> bool:
        """Whether no request is in flight at the edge, in the fleet or in an engine."""
        client = self.router.client
        return (
            self.router.gate.inflight == client.inflight_requests == 0
            and self.engine_requests == 0
            and not any(server.running_requests for server in self.servers)
        )

    async def idle_soon(self) -> None:
        """Assert that everything ends within a second."""
        await self.soon(lambda: self.idle, "the end of all requests")

    async def soon(self, condition: Any, what: str) -> None:
        """Assert that ``condition()`` becomes true within a second of this process's CPU time.

        Counted in polls, because other processes may use the CPU.
        """
        for _ in range(_LOOKS):
            if condition():
                return
            await asyncio.sleep(1 / _LOOKS)
        raise AssertionError(f"{what} did not come within a second")


@contextlib.asynccontextmanager
async def standing(
    settings: Settings, groups: int = 1, *, token_delay: float = 0.0
) -> AsyncIterator[Stand]:
    """Start a router with ``groups`` groups, and stop all of them at the end."""
    stand = Stand(await Router.start(settings), settings)
    try:
        for index in range(groups):
            await stand.join(f"g{index}", token_delay=token_delay)
        yield stand
    finally:
        for server in stand.servers:
            await server.stop()
        for engine in stand.engines:
            await engine.shutdown()
        await stand.router.stop()
