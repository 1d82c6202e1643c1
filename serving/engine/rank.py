"""Lifecycle of a rank: load the engine, join the routers, serve, drain, stop.

A rank runs in one of two hosts, which assign its place in the group and stop it:
:mod:`serving.engine.local_rank`, a process started manually, and :mod:`serving.engine.ray.rank`,
a Ray Serve replica.
"""

import asyncio
import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from serving import process_tuning
from serving.clock import Clock
from serving.engine.engine_processes import EngineProcesses
from serving.engine.metrics_page import MetricsPage, open_page
from serving.engine.router_link.node_drain import LeaveWatch
from serving.errors import EngineError
from serving.settings import Platform, Settings

if TYPE_CHECKING:
    from serving.engine.base import Engine
    from serving.engine.router_link.server import RankIdentity, RankServer

DRAIN_TIMEOUT = 5.0
"""Time for running requests to finish when a rank stops, seconds; less than Serve's limit."""


@dataclass(frozen=True, slots=True)
class DataParallelAddress:
    """Address at which the engines of a group connect to each other."""

    host: str
    """Address of rank 0's node."""
    port: int
    """vLLM's ``data_parallel_rpc_port``; a free port on that node."""


class Rank:
    """One rank of a group. Requires a separate process per rank."""

    def __init__(
        self,
        settings: Settings,
        identity: "RankIdentity",
        meeting: DataParallelAddress,
        clock: Clock,
    ) -> None:
        """Create the rank without starting anything.

        Args:
            settings: All settings.
            identity: Identity that is sent to routers; ``join`` adds ``metrics_address``.
            meeting: Address of the group's data-parallel RPC, the same for all ranks.
            clock: Source of time.
        """
        self._settings = settings
        self._identity = identity
        self._meeting = meeting
        self._clock = clock
        self._engine: Engine | None = None
        self._page: MetricsPage | None = None
        self._server: RankServer | None = None
        self._leave: LeaveWatch | None = None

    async def load(self) -> None:
        """Start the engine. Set the process's environment first; if this fails, call :meth:`stop`.

        Raises:
            SettingsError: The engine rejects its arguments.
            EngineError: The engine fails to start or exceeds ``group.start_timeout``.
        """
        limit = self._settings.group.start_timeout
        self._engine = make_engine(self._settings, self._identity.rank, self._meeting, self._clock)
        try:
            async with asyncio.timeout(limit):
                await self._engine.start()
        except TimeoutError as error:
            raise EngineError(
                f"the engine did not start within {limit:g} s (group.start_timeout)"
            ) from error

    async def join(self) -> None:
        """Connect to the routers and serve their requests. If this fails, call :meth:`stop`.

        Raises:
            SettingsError: No port is free for the metrics page, or a router address is invalid.
        """
        from serving.engine.router_link.server import RankServer

        assert self._engine is not None, "call load() first"
        identity = self._identity
        self._page = open_page(self._settings.telemetry, identity.node)
        if self._page is not None:
            identity = replace(identity, metrics_address=self._page.address)
        self._server = RankServer(self._engine, self._settings.link, identity)
        await self._server.start()
        self._leave = LeaveWatch(self._server.drain, self._clock)
        self._leave.start()

    async def check_health(self) -> None:
        """Check that the engine makes progress.

        Raises:
            EngineError: The engine is stalled, has failed or is not running.
        """
        if self._engine is None:
            raise EngineError("the engine is not running")
        await self._engine.check_health()

    def status(self) -> dict[str, Any]:
        """Return the connection state by router; empty before :meth:`join`."""
        return {} if self._server is None else dict(self._server.status())

    async def stop(self, reason: str) -> None:
        """Drain for up to ``DRAIN_TIMEOUT``, disconnect, stop the engine. Safe to call twice.

        Args:
            reason: Reason that is sent to the routers.
        """
        leave, self._leave = self._leave, None
        page, self._page = self._page, None
        server, self._server = self._server, None
        engine, self._engine = self._engine, None
        try:
            if leave is not None:
                await leave.stop()
            if page is not None:
                await asyncio.to_thread(page.close)
            if server is not None:
                await server.drain(reason, DRAIN_TIMEOUT)
                await server.stop()
        finally:
            if engine is not None:
                await engine.shutdown()


def make_engine(
    settings: Settings, rank: int, meeting: DataParallelAddress, clock: Clock
) -> "Engine":
    """Create the engine of ``engine.kind`` without loading the model.

    On CPU, starts the fork server for vLLM's processes.

    Raises:
        OSError: The fork server or the orphan reaper does not start.
    """
    if settings.engine.kind == "fake":
        from serving.engine.fake.engine import FakeEngine

        return FakeEngine(settings, rank=rank)
    processes = EngineProcesses(clock)
    if settings.platform is Platform.CPU:
        processes.fork()
    with process_tuning.gc_paused():
        from serving.engine.vllm_engine import VllmEngine

        # Scanning these objects takes half a second each time and finds a few MB of garbage.
        gc.freeze()
    return VllmEngine(
        settings,
        rank=rank,
        address=meeting.host,
        rpc_port=meeting.port,
        processes=processes,
        clock=clock,
    )


def tune_rank_process(engine_kind: str) -> None:
    """Reduce the per-token cost in a process with one started rank."""
    if engine_kind == "vllm":
        from vllm import envs

        envs.enable_envs_cache()  # vLLM reads variables for every token
    process_tuning.freeze_existing()
