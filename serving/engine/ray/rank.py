"""A rank of a gang: rendezvous through Ray, progress reports, and cleanup of child processes.

placed -> meet the gang -> load the engine -> join the routers -> serve
stop   -> drain through the routers -> stop the engine -> end remaining child processes
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

from serving.clock import SystemClock
from serving.engine.environment import network_environment
from serving.engine.processes import descendants, end, wait_gone
from serving.engine.rank import DataParallelAddress, Rank
from serving.engine.ray.rendezvous import GangMember, GcsStore, Meeting, Rendezvous
from serving.engine.ray.startup_progress import Stage, StageBoard, StageWriter
from serving.engine.router_link.server import RankIdentity
from serving.engine.start_checks import fabric_environment
from serving.errors import EngineError
from serving.net import HeldPort
from serving.settings import Settings

CHILD_TIMEOUT = 3.0
"""Time for child processes to exit after the engine has stopped, seconds."""

_log = logging.getLogger(__name__)


class GangRank:
    """Hosts a :class:`~serving.engine.rank.Rank` in a replica of Ray Serve."""

    def __init__(self, settings: Settings, member: GangMember, address: str) -> None:
        """Create the rank without starting anything. Ray must be connected.

        Args:
            settings: All settings.
            member: Place of the rank in the gang.
            address: This node's address.
        """
        store = GcsStore()
        self._settings = settings
        self._member = member
        self._address = address
        self._clock = SystemClock()
        self._board = StageBoard(store, member.app)
        self._stages = StageWriter(self._board, member, address, os.getpid(), self._clock)
        self._rendezvous = Rendezvous(store, member, self._clock)
        self._rank: Rank | None = None
        self._held_port: HeldPort | None = None
        """Rank 0 only: the published port until the engine listens on it."""

    async def start(self) -> None:
        """Meet the gang, load the engine, join the routers.

        Raises:
            ServingError: The rank cannot start; the reason is also written to the stage board.
        """
        try:
            await self._start()
        except BaseException as error:
            self._stages.fail(error)
            _log.exception("rank %d of gang %s failed", self._member.rank, self._member.gang_id)
            await self._stop("the rank failed to start")
            raise

    async def check_health(self) -> None:
        """Check that the engine makes progress.

        Raises:
            EngineError: The engine is stalled, has failed or is not running.
        """
        if self._rank is None:
            raise EngineError("the engine is not running")
        await self._rank.check_health()

    def status(self) -> dict[str, Any]:
        """Return the connection state by router."""
        return {} if self._rank is None else self._rank.status()

    async def stop(self) -> None:
        """Drain, stop the engine and all child processes, and remove the gang's stored entries."""
        await self._stop("the rank is being stopped")
        self._rendezvous.leave()
        self._board.remove(self._member)

    async def _start(self) -> None:
        settings = self._settings
        self._stages.enter(Stage.PLACED)
        if self._member.rank == 0:
            self._board.sweep(self._clock.time())
        os.environ.update(network_environment(self._address))
        # In a thread, because imports and file reads would delay Serve's health checks.
        os.environ.update(await asyncio.to_thread(fabric_environment, settings))
        if settings.group.placement == "strict_spread":
            self._rendezvous.claim_node(self._address)
        self._stages.enter(Stage.MEETING)
        meeting = await self._rendezvous.meet(
            self._address, self._hold_port, settings.group.start_timeout
        )
        self._rank = Rank(
            settings,
            identity_of(self._member, meeting, self._address, os.environ),
            DataParallelAddress(meeting.address, meeting.rpc_port),
            self._clock,
        )
        self._stages.enter(Stage.LOADING)
        await self._rank.load()
        self._release_port()
        self._stages.enter(Stage.JOINING)
        await self._rank.join()

    async def _stop(self, reason: str) -> None:
        rank, self._rank = self._rank, None
        if rank is not None:
            await rank.stop(reason)
        self._release_port()
        await asyncio.to_thread(end_children, CHILD_TIMEOUT)

    def _hold_port(self, address: str) -> int:
        self._held_port = HeldPort(address)
        return self._held_port.port

    def _release_port(self) -> None:
        held, self._held_port = self._held_port, None
        if held is not None:
            held.release()


def identity_of(
    member: GangMember, meeting: Meeting, node: str, environment: Mapping[str, str]
) -> RankIdentity:
    """Return the identity that a rank sends to routers.

    Args:
        member: Place of the rank in the gang.
        meeting: Result of the gang's rendezvous.
        node: Address of the rank's node.
        environment: The process's variables.
    """
    return RankIdentity(
        group_id=member.gang_id,
        epoch=meeting.epoch,
        rank=member.rank,
        world_size=member.world_size,
        node=node,
        started_at=meeting.made_at,
        app=origin(member.app, environment),
    )


def origin(app: str, environment: Mapping[str, str]) -> str:
    """Return the application name for ``Hello.app``, with the RayCluster as a prefix if known.

    During a RayService upgrade, blue and green are the same application in two RayClusters.
    KubeRay sets ``RAY_CLUSTER_NAME`` in the pods of each cluster.
    """
    cluster_name = environment.get("RAY_CLUSTER_NAME", "")
    return f"{cluster_name}/{app}" if cluster_name else app


def end_children(timeout: float, keep: frozenset[int] = frozenset()) -> None:
    """Wait for the descendants of this process to end, then kill the remaining ones.

    Args:
        timeout: Maximum time to wait, seconds.
        keep: Ids of processes to exclude.
    """
    children = [item for item in descendants(os.getpid()) if item.pid not in keep]
    left = wait_gone(children, timeout)
    for child in left:
        _log.warning("process %d is still running after the engine stopped; killing it", child.pid)
    end(left, grace=0.0)
