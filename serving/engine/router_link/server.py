"""The rank's side of the link: dials every router and runs what they submit on the engine."""

import asyncio
import contextlib
import os
import random
from dataclasses import dataclass
from typing import Any

import structlog

from serving import __version__
from serving.clock import Clock, SystemClock
from serving.engine.base import Engine
from serving.engine.router_link.connection import RouterDialer
from serving.errors import ServingError, SettingsError
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2
from serving.net import addresses_of, dns_name
from serving.settings import LinkSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOAD_DEADLINE = 5.0
"""Seconds that the engine gets to report its load; silence for longer is a stall."""
_QUIET_INTERVALS = 4
"""Of ``link.load_interval``, after which an idle rank repeats itself."""
_Snapshot = link_pb2.LoadSnapshot


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """Which rank this is."""

    group_id: str
    epoch: str
    rank: int
    world_size: int
    node: str = ""
    """Address of the node, for people."""
    started_at: float = 0.0
    """When this epoch's gang was started, seconds since the Unix epoch, the same on all its
    ranks; lets a router tell the living epoch from a left-over rank. 0 = not known."""
    metrics_address: str = ""
    """Where it shows its engine's own metrics, host:port; empty: nowhere."""
    app: str = ""
    """What deployed it, for operators; empty: not told."""


class RankServer:
    """Keeps one stream to every router in ``settings.routers`` while it runs.

    Routers are independent: a slow or absent one never holds up the engine or another router.
    """

    def __init__(
        self,
        engine: Engine,
        settings: LinkSettings,
        identity: RankIdentity,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._identity = identity
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._dialers: dict[str, RouterDialer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._load: link_pb2.LoadSnapshot | None = None
        self._sample_now = asyncio.Event()
        self._drain_reason: str | None = None

    async def start(self) -> None:
        """Begin to dial. Returns at once; routers may come later. The engine must be started.

        Raises:
            SettingsError: an address is not host:port.
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
        """Take no new requests, tell the routers, and wait for the running ones.

        Returns:
            Whether all finished within ``timeout`` seconds.
        """
        self._drain_reason = reason
        for dialer in self._dialers.values():
            dialer.drain(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for dialer in tuple(self._dialers.values()):
                    await dialer.idle()
        return self.running_requests == 0

    async def stop(self) -> None:
        """Abort what still runs and hang up. The engine is left as it is. Safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        dialers, self._dialers = self._dialers, {}
        await asyncio.gather(*(dialer.stop() for dialer in dialers.values()))

    @property
    def running_requests(self) -> int:
        """Requests of all routers on this rank."""
        return sum(dialer.running_requests for dialer in self._dialers.values())

    def status(self) -> dict[str, Any]:
        """Return, for people: each router's address with its state, and the rank's health."""
        load = self._load
        return {
            "routers": {address: dialer.status() for address, dialer in self._dialers.items()},
            "running_requests": self.running_requests,
            "draining": self._drain_reason,
            "health": _Snapshot.Health.Name(load.health) if load else "HEALTH_UNSPECIFIED",
            "health_reason": load.health_reason if load else "",
        }

    # -- routers ------------------------------------------------------------------------

    def _dial(self, address: str, server_name: str | None = None) -> None:
        dialer = RouterDialer(
            address,
            self._engine,
            self._settings,
            hello=self._hello(),
            clock=self._clock,
            rng=self._rng,
            trouble=self._sample_now.set,
            server_name=server_name,
        )
        if self._load is not None:
            dialer.report(self._load)
        if self._drain_reason is not None:
            dialer.drain(self._drain_reason)
        self._dialers[address] = dialer
        dialer.start()

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
        """Follow a DNS name: dial addresses that appear, drop lost ones that disappeared."""
        mine: set[str] = set()
        while True:
            try:
                found = await addresses_of(host, port)
            except OSError as error:
                log.warning("cannot resolve the routers' name", name=host, error=str(error))
                # An outage of DNS says nothing about the routers.
                found = mine
            for address in found - self._dialers.keys():
                log.info("a router appeared", name=host, address=address)
                self._dial(address, server_name=host)
            mine |= found
            for address in mine - found:
                # A live stream outlives its DNS record: the router may only be draining.
                if not self._dialers[address].connected:
                    log.info("a router disappeared", name=host, address=address)
                    await self._dialers.pop(address).stop()
            mine &= self._dialers.keys()
            await asyncio.sleep(self._settings.backoff_max)

    # -- load and health ----------------------------------------------------------------

    async def _report(self) -> None:
        """Send load snapshots every ``load_interval``, and at once when there is trouble.

        An idle rank that has nothing new to say says so more rarely: in a large fleet reports of
        idle ranks would be a router's greatest expense.
        """
        said, quiet = b"", 0
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
            news = _news(load)
            quiet = quiet + 1 if news == said else 0
            if quiet % _QUIET_INTERVALS and not (load.running_requests or load.waiting_requests):
                continue
            said = news
            for dialer in self._dialers.values():
                dialer.report(load)

    async def _sample(self) -> link_pb2.LoadSnapshot:
        """Ask the engine how it is; never raises."""
        try:
            async with asyncio.timeout(_LOAD_DEADLINE):
                load = await self._engine.load()
        except TimeoutError:
            return _Snapshot(
                health=_Snapshot.STALLED,
                health_reason=f"the engine did not report its load for {_LOAD_DEADLINE:g} s",
            )
        except Exception as error:  # noqa: BLE001  whatever it is, the routers must hear of it
            return _Snapshot(
                health=_Snapshot.FAILED, health_reason=f"the engine reports no load: {error}"
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


def _news(load: link_pb2.LoadSnapshot) -> bytes:
    """Return what of a load is worth a message: not its clock, and not how memory breathes."""
    news = _Snapshot()
    news.CopyFrom(load)
    news.ClearField("since_last_step_ms")
    news.ClearField("resident_bytes")
    return news.SerializeToString(deterministic=True)
