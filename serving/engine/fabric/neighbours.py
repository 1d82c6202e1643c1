"""Connections from one peer to the other peers, and detection of lost peers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from serving.engine.fabric.diagnosis import LEADER, Loss
from serving.engine.fabric.link import BEAT, Link, Message, dial, listen

_TRY = 3.0
"""Timeout of one connection attempt, seconds."""
_PAUSE = 0.5
"""Pause between attempts, seconds."""
FLUSH = 1.0
"""Time to send the last messages before a connection is closed, seconds."""


class Neighbours:
    """Connections and losses by index of the other peer."""

    def __init__(self, silence: float) -> None:
        self.links: dict[int, Link] = {}
        self.lost: dict[int, Loss] = {}
        self._silence = silence

    @property
    def alive(self) -> set[int]:
        """Peers whose heartbeats arrive."""
        return self.links.keys() - self.lost.keys()

    def find_lost(self) -> dict[int, Loss]:
        """Detect lost peers; return those lost since the last call."""
        fresh = {}
        for index, link in self.links.items():
            if index in self.lost:
                continue
            loss = self._loss(link)
            if loss is not None:
                self.lost[index] = fresh[index] = loss
        return fresh

    def note(self, index: int, loss: Loss) -> None:
        """Record an unreachable peer."""
        self.lost.setdefault(index, loss)

    async def close(self, reason: str = "") -> None:
        """Close all connections; send ``reason``, the reason for leaving, unless it is empty."""
        for link in self.links.values():
            if reason:
                link.send({"t": "bye", "why": reason})
        await asyncio.gather(*(link.close(FLUSH) for link in self.links.values()))

    def _loss(self, link: Link) -> Loss | None:
        if link.leave_reason:
            return Loss("left", link.leave_reason)
        if link.ended:
            return Loss("closed", "its connection was closed")
        if link.quiet >= self._silence:
            return Loss(
                "silent", f"nothing received from {link.remote_address} for {link.quiet:g} s"
            )
        return None


class Mesh:
    """Connections between the followers; each dials the followers with lower indexes."""

    def __init__(self, index: int, address: str, neighbours: Neighbours) -> None:
        self._index = index
        self._address = address
        self._neighbours = neighbours
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()

    async def open(self) -> int:
        """Listen on this pod's address; return the port."""
        self._server = await listen(self._address, 0, self._accept)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def connect(self, table: Mapping[int, tuple[str, int]], limit: float) -> dict[int, Loss]:
        """Connect to every other follower.

        Args:
            table: Address and port by peer.
            limit: Maximum time for all connections together, seconds.

        Returns:
            The peers that were not connected in time.
        """
        others = {index for index in table if index not in {LEADER, self._index}}
        reasons: dict[int, str] = {}
        dials = [
            asyncio.create_task(self._dial(index, *table[index], reasons))
            for index in others
            if index < self._index
        ]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    while not others <= self._neighbours.links.keys():
                        self._arrived.clear()
                        await self._arrived.wait()
        finally:
            for task in dials:
                task.cancel()
            await asyncio.gather(*dials, return_exceptions=True)
        return {
            index: Loss(
                "unreachable",
                f"peer {self._index} could not connect to {table[index][0]} within {limit:g} s"
                + (f": {reasons[index]}" if index in reasons else ""),
            )
            for index in others - self._neighbours.links.keys()
        }

    async def close(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _dial(self, index: int, host: str, port: int, reasons: dict[int, str]) -> None:
        async for reason in attempts(host, port):
            if isinstance(reason, str):
                reasons[index] = reason
                continue
            reason.send({"t": "mesh", "index": self._index})
            self._add(index, reason)
            return

    def _accept(self, link: Link) -> None:
        task = asyncio.create_task(self._greet(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, link: Link) -> None:
        hello = await link.receive(_TRY)
        index = None if hello is None or hello["t"] != "mesh" else hello.get("index")
        if not isinstance(index, int) or index in self._neighbours.links:
            await link.close()
            return
        self._add(index, link)

    def _add(self, index: int, link: Link) -> None:
        link.start(_ignore)
        self._neighbours.links[index] = link
        self._arrived.set()


async def attempts(host: str, port: int) -> AsyncIterator[Link | str]:
    """Connect to a peer; yield the reason of each failed attempt and finally the link.

    Retries without a limit; the caller sets the timeout.
    """
    while True:
        try:
            link = await dial(host, port, _TRY)
        except TimeoutError:
            yield f"{host} does not respond (cut cable, missing route, or network policy)"
        except ConnectionRefusedError:
            yield f"{host} refused the connection to port {port} (nothing is listening yet)"
        except OSError as error:
            yield f"{host}: {error.strerror or error}"
        else:
            yield link
            return
        await asyncio.sleep(_PAUSE)


async def watch(neighbours: Neighbours, on_loss: Callable[[int, Loss], Any]) -> None:
    """Call ``on_loss`` for each lost peer until cancelled."""
    while True:
        for index, loss in neighbours.find_lost().items():
            on_loss(index, loss)
        await asyncio.sleep(BEAT / 2)


def _ignore(message: Message) -> None:
    """Ignore the message: followers exchange heartbeats only."""
