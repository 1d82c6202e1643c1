"""The rank's side of the link: connects to every router and runs the submitted requests."""

import asyncio
import contextlib
import os
import random
from dataclasses import dataclass
from typing import Any

import structlog

from serving import __version__
from serving.engine.base import Engine
from serving.engine.router_link.connection import RouterConnection
from serving.errors import ServingError, SettingsError
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2
from serving.net import addresses_of, dns_name
from serving.settings import LinkSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOAD_DEADLINE = 5.0
"""Time for the engine to report its load, seconds; after that, the engine counts as stalled."""
_QUIET_INTERVALS = 4
"""Number of load intervals (``link.load_interval``) after which an idle rank resends its load."""
_Snapshot = link_pb2.LoadSnapshot


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """Identity that a rank sends to routers in Hello."""

    group_id: str
    epoch: str
    rank: int
    world_size: int
    node: str = ""
    """Address of the node, for operators."""
    started_at: float = 0.0
    """Start time of this epoch's gang, seconds since the Unix epoch; 0 if unknown. All ranks of the
    gang report the same time; routers use it to distinguish the current epoch from stale ranks."""
    metrics_address: str = ""
    """``host:port`` of the engine's metrics page; empty if there is none."""
    app: str = ""
    """Name of the application that deployed the rank, for operators; empty if unknown."""


class RankServer:
    """Maintains one stream to every router in ``settings.routers``.

    Routers are independent: a slow or absent router delays neither the engine nor other routers.
    """

    def __init__(
        self,
        engine: Engine,
        settings: LinkSettings,
        identity: RankIdentity,
        *,
        rng: random.Random | None = None,
    ) -> None:
        """Create the server without dialing; see :meth:`start`.

        Args:
            engine: Engine that runs the requests.
            settings: Routers, timeouts and limits of the link.
            identity: Identity of this rank.
            rng: Source of jitter; by default seeded by the system.
        """
        self._engine = engine
        self._settings = settings
        self._identity = identity
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._connections: dict[str, RouterConnection] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._load: link_pb2.LoadSnapshot | None = None
        self._sample_now = asyncio.Event()
        self._drain_reason: str | None = None

    async def start(self) -> None:
        """Start dialing in the background; routers can appear later. Start the engine first.

        Raises:
            SettingsError: An address does not have the form ``host:port``.
        """
        names = []
        addresses = []
        for address in self._settings.routers:
            try:
                name = dns_name(address)
            except ValueError as error:
                raise SettingsError(f"link.routers: {error}") from error
            if name is None:
                addresses.append(address)
            else:
                names.append(name)
        self._load = await self._sample()
        for address in addresses:
            self._dial(address)
        self._tasks.append(asyncio.create_task(self._report()))
        self._tasks.extend(asyncio.create_task(self._resolve(*name)) for name in names)

    async def drain(self, reason: str, timeout: float) -> bool:
        """Reject new requests, notify the routers, and wait for running requests.

        Args:
            reason: Reason that is sent to the routers.
            timeout: Maximum time to wait, seconds.

        Returns:
            Whether all running requests finished in time.
        """
        self._drain_reason = reason
        for connection in self._connections.values():
            connection.drain(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for connection in tuple(self._connections.values()):
                    await connection.idle()
        return self.running_requests == 0

    async def stop(self) -> None:
        """Abort running requests and disconnect. The engine keeps running. Safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(connection.stop() for connection in connections.values()))

    @property
    def running_requests(self) -> int:
        """Number of running requests of all routers on this rank."""
        return sum(connection.running_requests for connection in self._connections.values())

    def status(self) -> dict[str, Any]:
        """Return connection states by router address, and the rank's health; for operators."""
        load = self._load
        return {
            "routers": {
                address: connection.status() for address, connection in self._connections.items()
            },
            "running_requests": self.running_requests,
            "draining": self._drain_reason,
            "health": _Snapshot.Health.Name(load.health) if load else "HEALTH_UNSPECIFIED",
            "health_reason": load.health_reason if load else "",
        }

    # -- routers ------------------------------------------------------------------------

    def _dial(self, address: str, server_name: str | None = None) -> None:
        connection = RouterConnection(
            address,
            self._engine,
            self._settings,
            hello=self._hello(),
            rng=self._rng,
            report_trouble=self._sample_now.set,
            server_name=server_name,
        )
        if self._load is not None:
            connection.report(self._load)
        if self._drain_reason is not None:
            connection.drain(self._drain_reason)
        self._connections[address] = connection
        connection.start()

    def _hello(self) -> link_pb2.Hello:
        hello = link_pb2.Hello()
        hello.CopyFrom(self._engine.describe())
        hello.protocol_version = PROTOCOL_VERSION
        hello.serving_version = __version__
        hello.group_id = self._identity.group_id
        hello.epoch = self._identity.epoch
        hello.rank = self._identity.rank
        hello.world_size = self._identity.world_size
        hello.node = self._identity.node
        hello.epoch_started_unix_seconds = self._identity.started_at
        hello.pid = os.getpid()
        hello.metrics_address = self._identity.metrics_address
        hello.app = self._identity.app
        return hello

    async def _resolve(self, host: str, port: int) -> None:
        """Track a DNS name: dial new addresses, drop removed ones once they are disconnected."""
        mine: set[str] = set()
        while True:
            try:
                found = await addresses_of(host, port)
            except OSError as error:
                log.warning("cannot resolve the routers' name", name=host, error=str(error))
                # A DNS outage does not imply that the routers have changed.
                found = mine
            for address in found - self._connections.keys():
                log.info("a router appeared", name=host, address=address)
                self._dial(address, server_name=host)
            mine |= found
            for address in mine - found:
                # Keep open streams without a DNS record: the router may be draining.
                if not self._connections[address].connected:
                    log.info("a router disappeared", name=host, address=address)
                    await self._connections.pop(address).stop()
            mine &= self._connections.keys()
            await asyncio.sleep(self._settings.backoff_max)

    # -- load and health ----------------------------------------------------------------

    async def _report(self) -> None:
        """Send load snapshots every ``load_interval``, and immediately after a failed request.

        An idle rank sends unchanged snapshots less often: in a large fleet, reports of idle ranks
        would dominate a router's load.
        """
        sent, unchanged = b"", 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.load_interval):
                    await self._sample_now.wait()
            self._sample_now.clear()
            load = await self._sample()
            if self._load is None or load.health != self._load.health:
                log.info(
                    "health changed",
                    health=_Snapshot.Health.Name(load.health),
                    reason=load.health_reason,
                )
            self._load = load
            content = _content(load)
            unchanged = unchanged + 1 if content == sent else 0
            busy = load.running_requests or load.waiting_requests
            if unchanged % _QUIET_INTERVALS and not busy:
                continue
            sent = content
            for connection in self._connections.values():
                connection.report(load)

    async def _sample(self) -> link_pb2.LoadSnapshot:
        """Return the engine's load and health; errors are reported as health, not raised."""
        try:
            async with asyncio.timeout(_LOAD_DEADLINE):
                load = await self._engine.load()
        except TimeoutError:
            return _Snapshot(
                health=_Snapshot.STALLED,
                health_reason=f"the engine did not report its load for {_LOAD_DEADLINE:g} s",
            )
        except Exception as error:  # noqa: BLE001  every error is reported to the routers
            return _Snapshot(
                health=_Snapshot.FAILED,
                health_reason=f"the engine failed to report its load: {error}",
            )
        try:
            async with asyncio.timeout(_LOAD_DEADLINE):
                await self._engine.check_health()
        except Exception as error:  # noqa: BLE001  as above
            if load.health not in {_Snapshot.FAILED, _Snapshot.STALLED}:
                load.health = _Snapshot.FAILED
            if not load.health_reason:
                known = isinstance(error, ServingError)
                load.health_reason = str(error) if known else f"{type(error).__name__}: {error}"
        return load


def _content(load: link_pb2.LoadSnapshot) -> bytes:
    """Serialize a load without the fields whose changes alone do not require a message."""
    content = _Snapshot()
    content.CopyFrom(load)
    content.ClearField("since_last_step_ms")
    content.ClearField("resident_bytes")
    return content.SerializeToString(deterministic=True)
