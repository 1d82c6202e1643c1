"""Roll call on peer 0: listens on the leader's address, admits peers, reports missing ones."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine.fabric.diagnosis import LEADER
from serving.engine.fabric.facts import Facts, difference
from serving.engine.fabric.link import BEAT, Link, Message, listen
from serving.engine.fabric.names import resolve
from serving.engine.fabric.neighbours import FLUSH, Neighbours
from serving.engine.fabric.plan import FabricError, Plan
from serving.engine.fabric.workers import Ready

_GREETING = 5.0
"""Timeout of a connection's first message, seconds."""
_LOOK_UP = 5.0
"""Timeout of a name lookup, seconds."""
_LAST_LOOK_UP = 2.0
"""Timeout of the lookups for the report of missing peers, seconds."""
_PROGRESS_INTERVAL = 5.0
"""Interval between progress lines, seconds."""


@dataclass(slots=True)
class Peer:
    """A peer that has joined."""

    facts: Facts
    address: str
    port: int = 0
    """Port on which the peer listens for other peers."""
    meshed: bool = False
    """Whether the peer is connected to every other peer."""
    ready: Ready | None = None
    """Workers of the peer; None until they are ready for a job."""

    def __str__(self) -> str:
        parts = [self.facts.name, self.address]
        if self.facts.node:
            parts.append(f"node {self.facts.node}")
        return ", ".join(parts)


class RollCall:
    """Collects the peers of one run."""

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        neighbours: Neighbours,
        on_message: Callable[[int, Message], None],
        print_line: Callable[[str], None],
    ) -> None:
        """Create the roll call without listening.

        Args:
            plan: Plan of the check.
            facts: Facts of peer 0, which the other peers must match.
            neighbours: Receives the connections of admitted peers.
            on_message: Called with each message of an admitted peer.
            print_line: Called with progress lines.
        """
        self._plan = plan
        self._facts = facts
        self._neighbours = neighbours
        self._on_message = on_message
        self._print_line = print_line
        self.peers: dict[int, Peer] = {}
        self._rejected = ""
        self._over = False
        self._arrived = asyncio.Event()
        self._greetings: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def run(self) -> None:
        """Wait until all peers have joined and match.

        Raises:
            FabricError: A peer did not join in time, does not match, or has a problem.
        """
        began = time.monotonic()
        deadline = began + self._plan.join_limit
        self.peers[LEADER] = Peer(self._facts, await self._open(deadline), meshed=True)
        last_printed = began - _PROGRESS_INTERVAL
        while absent := self._absent():
            now = time.monotonic()
            if now >= deadline:
                raise FabricError(await self._missing_peers(absent, now - began))
            if now - last_printed >= _PROGRESS_INTERVAL:
                last_printed = now
                limit = f"{now - began:.0f} s of {self._plan.join_limit:g} s"
                self._print_line(f"waiting for {self.names(absent)} ({limit})")
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._arrived.wait()
        self._over = True
        problems = [
            f"peer {index} ({peer.facts.name}): {problem}"
            for index, peer in sorted(self.peers.items())
            for problem in peer.facts.problems
        ]
        if problems:
            raise FabricError("; ".join(problems))

    async def close(self) -> None:
        """Stop listening."""
        for task in self._greetings:
            task.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    def names(self, peers: list[int]) -> str:
        """Return a list of peers as text, with pod names if they follow from the leader's name."""
        return ", ".join(f"peer {i}{f' ({n})' if (n := self._plan.name(i)) else ''}" for i in peers)

    async def _open(self, deadline: float) -> str:
        """Listen on the leader's address once its name resolves to this pod; return the address.

        Raises:
            FabricError: The name does not resolve to this pod before ``deadline``.
        """
        host, port = self._plan.leader_host, self._plan.leader_port
        last_printed = 0.0
        while True:
            try:
                address = await resolve(host, _LOOK_UP)
                self._server = await listen(address, port, self._accept)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return address
            if time.monotonic() + BEAT >= deadline:
                raise FabricError(
                    f"peer 0 cannot listen on --leader {host}:{port}: {reason}. The name must "
                    "resolve to this pod (a headless Service with publishNotReadyAddresses)"
                )
            if time.monotonic() - last_printed >= _PROGRESS_INTERVAL:
                last_printed = time.monotonic()
                self._print_line(f"waiting: cannot listen on {host}:{port} yet: {reason}")
            await asyncio.sleep(BEAT)

    def _absent(self) -> list[int]:
        """Return the missing peers. Disconnected peers count as missing and can join again.

        Raises:
            FabricError: A peer was rejected because it does not match.
        """
        for index, loss in self._neighbours.find_lost().items():
            self._print_line(f"peer {index} disconnected ({loss.detail}); waiting for it to rejoin")
            self.peers.pop(index, None)
        if self._rejected:
            raise FabricError(self._rejected)
        return [index for index in range(self._plan.peers) if index not in self.peers]

    def _accept(self, link: Link) -> None:
        task = asyncio.create_task(self._greet(link))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _greet(self, link: Link) -> None:
        """Admit a peer, or reject it with the reason; other clients are ignored."""
        hello = _read_hello(await link.receive(_GREETING))
        if hello is None:
            await link.close()
            return
        facts, port = hello
        reason = self._why_not(facts) or self._why_not_now(facts)
        if reason is not None:
            link.send({"t": "refused", "text": reason})
            self._arrived.set()
            await link.close(FLUSH)
            return
        before = self._neighbours.links.get(facts.index)
        self._neighbours.lost.pop(facts.index, None)
        self._neighbours.links[facts.index] = link
        self.peers[facts.index] = Peer(facts, link.remote_address, port)
        link.start(lambda message: self._on_message(facts.index, message))
        self._print_line(f"peer {facts.index} has joined: {self.peers[facts.index]}")
        self._arrived.set()
        if before is not None:
            await before.close()

    def _why_not(self, facts: Facts) -> str | None:
        """Return why a peer does not match, or ``None``. A mismatch ends the check."""
        reason = None
        differs = difference(self._facts, facts)
        if differs is not None:
            reason = f"the peers differ: {differs}"
        elif facts.index not in range(1, self._plan.peers):
            reason = (
                f"{facts.name} joined with --index {facts.index}, but --peers is {self._plan.peers}"
            )
        if reason is not None and not self._over:
            self._rejected = self._rejected or reason
        return reason

    def _why_not_now(self, facts: Facts) -> str | None:
        """Return why a peer is too late or a duplicate, or ``None``."""
        if self._over:
            return "the check has already started: this peer joined too late or was restarted"
        if facts.index in self._neighbours.alive:
            other = self.peers[facts.index].facts.name
            return f"{other} and {facts.name} both joined as peer {facts.index}"
        return None

    async def _missing_peers(self, absent: list[int], waited: float) -> str:
        """Return an error text with the missing peers and whether their names resolve."""
        missing = "; ".join(await asyncio.gather(*map(self._missing, absent)))
        here = self.names(sorted(self.peers))
        return (
            f"{missing} did not join within {waited:.0f} s (joined: {here}): check its pod and "
            "log (pending, pulling the image, no network?)"
        )

    async def _missing(self, index: int) -> str:
        name = self._plan.name(index)
        if not name:
            return f"peer {index}"
        try:
            address = await resolve(name, _LAST_LOOK_UP)
        except OSError as error:
            return f"peer {index} ({error}: its pod is not running yet)"
        return f"peer {index} ({name}, which resolves to {address})"


def _read_hello(message: Message | None) -> tuple[Facts, int] | None:
    """Return a peer's facts and port, or ``None`` for another kind of message."""
    if message is None or message["t"] != "hello":
        return None
    try:
        return Facts.of_message(message["facts"]), int(message["port"])
    except (KeyError, TypeError, ValueError):
        return None
