"""Routers and gangs of fake ranks in one process, with a supervisor that restarts broken gangs.

The code of routers and ranks is real: membership, client, join server, rank server. The engine
(``FakeEngine``), the network (``network``) and Ray Serve (``Supervisor``) are simulated.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from serving.admission.controller import AdmissionController
from serving.clock import Clock
from serving.dispatch.dispatcher import Dispatcher
from serving.engine.arguments import router_vllm_config
from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.errors import EngineError
from serving.fleet.canary import Canary
from serving.fleet.join_server import LinkServer
from serving.fleet.membership import FleetMembership
from serving.fleet.models import FleetModel, FleetModels
from serving.link.protocol import model_fingerprint
from serving.requests.client import FleetClient
from serving.routing.snapshot import MemberState
from serving.settings import Settings
from tests.faults.history import Happened, History, Ran
from tests.faults.network import SUFFIX, Network
from tests.faults.simulation import VirtualClock, VirtualLoop, process_var
from tests.faults.traffic import MAX_MODEL_LEN, POISON

CANARY = "-canary-"
"""Part of the ids of the router's own requests."""
_HEALTH_PERIOD = 1.0
_DRAIN, _STOP = 5.0, 12.0
"""As in ``serving.engine.ray.deployment``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and times of a cluster, in seconds."""

    routers: int = 1
    groups: int = 2
    ranks: int = 2
    token_delay: float = 0.02
    slots: int = 8
    """Maximum number of requests in a rank's batch."""
    stall_timeout: float = 3.0
    keepalive: float = 2.0
    restart: float = 2.0
    """Seconds from the stop of a broken gang to the start of the next."""
    request_timeout: float = 120.0
    max_resumes: int = 3
    suspect_tokens: int = 4
    queue: int = 1024
    """Maximum number of queued requests."""

    def settings(self) -> Settings:
        return Settings(
            engine={"kind": "fake", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": self.slots},
            group={"data_parallel": self.ranks, "count": self.groups},
            fleet={
                "stall_timeout": self.stall_timeout,
                "max_resumes": self.max_resumes,
                "suspect_tokens": self.suspect_tokens,
            },
            admission={"queue_requests": self.queue},
            router={"request_timeout": self.request_timeout},
            link={
                "routers": [f"router{number}{SUFFIX}:50052" for number in range(self.routers)],
                "keepalive": self.keepalive,
                "load_interval": 0.5,
            },
        )


class SimEngine(FakeEngine):
    """A fake engine that can be stalled and slowed, and records its requests in the history."""

    def __init__(
        self, settings: Settings, rank: int, clock: Clock, delay: float, history: History
    ) -> None:
        super().__init__(settings, rank=rank, clock=clock, token_delay=delay)
        self.name = ""
        self.slowness = 1.0
        self.on_poison: Callable[[], None] = lambda: None
        self._go = asyncio.Event()
        self._go.set()
        self._history = history

    def stall(self) -> None:
        """Make no step until ``resume``."""
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def fail(self) -> None:
        """Fail as after a fault in the worker: the process lives and reports it."""
        self._dead.set()
        self._go.set()

    @property
    def requests(self) -> list[str]:
        return list(self._requests)

    async def generate(self, work: Any) -> Any:
        attempt = work.request_id
        request = attempt.rpartition("/")[2].partition("~")[0].rpartition("-")[2]
        loop = asyncio.get_running_loop()
        seed = self._checked(work).seed
        ran = (self.name, True, attempt, len(work.prompt_token_ids), seed)
        mine = CANARY not in attempt
        if mine:
            self._history.add(Ran(loop.time(), request, *ran))
        try:
            if POISON in work.prompt_token_ids:
                loop.call_soon(self.on_poison)
            async with contextlib.aclosing(super().generate(work)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            if mine:
                self._history.add(Ran(loop.time(), request, self.name, False, attempt))

    async def _step(self, request: Any) -> None:
        await asyncio.sleep(self._token_delay * self.slowness)
        while not self._go.is_set():
            await self._go.wait()
        self._last_step = self._clock.monotonic()
        self._steps += 1


class SimRank:
    """One rank's process."""

    def __init__(
        self, cluster: "Cluster", identity: RankIdentity, siblings: "list[SimRank]"
    ) -> None:
        self.name = f"{identity.group_id}/{identity.rank}"
        self.alive = True
        self.stopped_since: float | None = None
        self.engine = SimEngine(
            cluster.settings,
            identity.rank,
            cluster.clock,
            cluster.shape.token_delay,
            cluster.history,
        )
        self.engine.name = self.name
        self.engine.on_poison = self.kill
        self.server = RankServer(
            self.engine,
            cluster.settings.link,
            identity,
            rng=random.Random(cluster.rng.random()),
        )
        self._cluster = cluster
        self._siblings = siblings

    async def start(self) -> None:
        await self.engine.start()
        await self.server.start()

    def kill(self) -> None:
        """``kill -9``: its connections break, its peers' collective operations hang."""
        if not self.alive:
            return
        self.alive = False
        self._cluster.note(f"{self.name} is killed")
        for wire in self._cluster.network.of(self.name):
            wire.cut("connection reset by peer")
        self._cluster.loop.kill(self.name)
        self.hang_gang()

    def hang_gang(self) -> None:
        """Stall: an expert-parallel step needs all ranks."""
        for rank in self._siblings:
            rank.engine.stall()

    def resume_gang(self) -> None:
        if all(rank.alive and rank.stopped_since is None for rank in self._siblings):
            for rank in self._siblings:
                rank.engine.resume()

    def stop_process(self) -> None:
        """``SIGSTOP``: nothing runs; connections stay open until the keepalive timeout."""
        self.stopped_since = self._cluster.loop.time()
        for wire in self._cluster.network.of(self.name):
            wire.freeze()
        self.hang_gang()

    def continue_process(self) -> None:
        """``SIGCONT``."""
        self.stopped_since = None
        for wire in self._cluster.network.of(self.name):
            wire.thaw()
        self.resume_gang()

    async def stop(self) -> None:
        """Stop gracefully, as Ray Serve does; kill a process that does not end."""
        if self.alive and self.stopped_since is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP):
                    await self._cluster.inside(self.name, self._stop)
        elif self.alive:
            await asyncio.sleep(_STOP)
        for wire in self._cluster.network.of(self.name):
            wire.cut("connection reset by peer")
        self.alive = False
        self._cluster.loop.kill(self.name)

    async def _stop(self) -> None:
        await self.server.drain("the rank is being stopped", _DRAIN)
        await self.server.stop()
        await self.engine.shutdown()


class Supervisor:
    """Ray Serve for one group: keeps one gang running and restarts a broken gang as a whole."""

    def __init__(self, cluster: "Cluster", slot: int) -> None:
        self.ranks: list[SimRank] = []
        self.restarts = 0
        self._cluster = cluster
        self._slot = slot
        self.name = f"g{slot}"
        self._leave = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def drain(self) -> None:
        """Stop the gang gracefully and start another one, as when its node is drained."""
        self._leave.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.gather(*(rank.stop() for rank in self.ranks))

    async def _run(self) -> None:
        cluster = self._cluster
        while True:
            self._leave.clear()
            group = f"g{self._slot}.{self.restarts}"
            identities = [
                RankIdentity(group, f"epoch-{group}", rank, cluster.shape.ranks, "", _now(cluster))
                for rank in range(cluster.shape.ranks)
            ]
            self.ranks = ranks = []
            ranks.extend(SimRank(cluster, identity, ranks) for identity in identities)
            for rank in ranks:
                await cluster.inside(rank.name, rank.start)
            await self._until_broken()
            await asyncio.gather(*(rank.stop() for rank in ranks))
            self.restarts += 1
            await asyncio.sleep(cluster.shape.restart * cluster.rng.uniform(0.5, 1.5))

    async def _until_broken(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_PERIOD):
                    await self._leave.wait()
                return
            for rank in self.ranks:
                if not await self._healthy(rank):
                    return

    async def _healthy(self, rank: SimRank) -> bool:
        now = self._cluster.loop.time()
        if not rank.alive:
            return False
        if rank.stopped_since is not None:
            return now - rank.stopped_since < 10 * _HEALTH_PERIOD
        try:
            await rank.engine.check_health()
        except EngineError:
            return False
        return True


def _now(cluster: "Cluster") -> float:
    return cluster.clock.time()


class SimRouter:
    """One router without REST and gRPC, built as in ``serving.router.app``."""

    def __init__(self, cluster: "Cluster", number: int, config: Any) -> None:
        settings = cluster.settings
        self.name = f"router{number}"
        self.address = settings.link.routers[number]
        self.alive = True
        self.clients: set[asyncio.Task[Any]] = set()
        """Tasks of its clients, which lose their connection when it dies."""
        self.canary = Canary(token_id=40, timeout=settings.fleet.canary_timeout)
        self.membership = FleetMembership(
            settings.fleet, cluster.clock, router_id=self.name, canary=self.canary
        )
        self.admission = AdmissionController(
            settings.admission,
            Dispatcher(self.membership, settings.routing, cluster.clock),
            clock=cluster.clock,
        )
        self.client = FleetClient(
            config,
            self.membership,
            self.admission,
            settings,
            cluster.clock,
            random.Random(cluster.rng.random()),
        )
        self.server = LinkServer(
            FleetModels(
                [
                    FleetModel(
                        settings.model.name,
                        self.membership,
                        model_fingerprint(settings.model.path),
                    )
                ]
            ),
            settings.link,
            settings.router,
            clock=cluster.clock,
        )
        self._cluster = cluster
        self._seen: dict[str, tuple[MemberState, str]] = {}
        self.membership.subscribe(self._note_groups)

    async def start(self) -> None:
        self._cluster.network.listen(self.address, self.server.Join)

    def die(self) -> None:
        """``kill -9``."""
        self.alive = False
        self._cluster.note(f"{self.name} is killed")
        self._cluster.network.close(self.address)
        for wire in self._cluster.network.of(self.name):
            wire.cut("connection reset by peer")
        self._cluster.loop.kill(self.name)
        self.canary.stop()
        for task in tuple(self.clients):
            task.cancel("DIED")

    async def stop(self) -> None:
        if self.alive:
            self._cluster.network.close(self.address)
            self.admission.close()
            await self.server.stop()
            self.canary.stop()
            await self.admission.stop()
        self.client.shutdown()

    def leftovers(self) -> list[str]:
        """Return the counts that should be zero without requests but are not."""
        if not self.alive:
            return []
        fleet = self.membership.snapshot()
        tokens = sum(rank.outstanding_tokens for group in fleet.groups for rank in group.ranks)
        streams = [name for link in self.server._links for name in link._streams]
        counts = {
            "requests in the client": self.client.inflight_requests,
            "requests on links": sum(CANARY not in name for name in streams),
            "outstanding tokens": tokens,
            "requests in the queue": self.admission.queue_length,
        }
        return [f"{self.name}: {count} {what}" for what, count in counts.items() if count]

    def _note_groups(self) -> None:
        now = {group.group_id: group for group in self.membership.snapshot().groups}
        for name in self._seen.keys() - now.keys():
            del self._seen[name]
            self._cluster.note(f"{self.name}: {name} is gone")
        for name, group in now.items():
            if self._seen.get(name) != (group.state, group.reason):
                self._seen[name] = (group.state, group.reason)
                self._cluster.note(f"{self.name}: {name} is {group.state}: {group.reason}")


class Cluster:
    """All routers and groups, and the network between them."""

    def __init__(self, shape: Shape, rng: random.Random, history: History) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.shape = shape
        self.rng = rng
        self.history = history
        self.settings = shape.settings()
        self.clock = VirtualClock(loop)
        self.network = Network(keepalive=shape.keepalive)
        config = _vllm_config(self.settings)
        self.routers = [SimRouter(self, number, config) for number in range(shape.routers)]
        self.groups = [Supervisor(self, slot) for slot in range(shape.groups)]

    async def start(self) -> None:
        """Start everything and wait until every router has every group ready."""
        for router in self.routers:
            await self.inside(router.name, router.start)
        for group in self.groups:
            group.start()
        async with asyncio.timeout(60):
            while not all(self._complete(router) for router in self.routers):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        await asyncio.gather(*(group.stop() for group in self.groups))
        for router in self.routers:
            await self.inside(router.name, router.stop)
        await asyncio.sleep(_STOP)

    def note(self, what: str) -> None:
        """Record an event that belongs to no request."""
        self.history.add(Happened(self.loop.time(), what))

    def living(self) -> list[SimRank]:
        return [rank for group in self.groups for rank in group.ranks if rank.alive]

    def leftovers(self) -> list[str]:
        """Return the counts that should be zero without requests but are not."""
        found = [line for router in self.routers for line in router.leftovers()]
        for rank in self.living():
            running = [name for name in rank.engine.requests if CANARY not in name]
            if running:
                found.append(f"{rank.name}: still runs {running}")
        return found

    async def inside(self, process: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await ``call()`` as a given process."""
        token = process_var.set(process)
        try:
            task: asyncio.Task[Any] = asyncio.create_task(_as_coroutine(call))
        finally:
            process_var.reset(token)
        return await task

    def _complete(self, router: SimRouter) -> bool:
        groups = router.membership.snapshot().groups
        ready = [group for group in groups if group.state is MemberState.READY]
        return len(ready) == self.shape.groups


def _as_coroutine(call: Callable[[], Awaitable[Any]]) -> Coroutine[Any, Any, Any]:
    async def run() -> Any:
        return await call()

    return run()


_configs: dict[str, Any] = {}


def _vllm_config(settings: Settings) -> Any:
    """Return vLLM's configuration; cached, because creating it takes seconds."""
    if settings.model.path not in _configs:
        _configs[settings.model.path] = router_vllm_config(settings)
    return _configs[settings.model.path]
