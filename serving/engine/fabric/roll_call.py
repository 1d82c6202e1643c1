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
_TELL_EVERY = 5.0
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
        words = [self.facts.name, self.address]
        if self.facts.node:
            words.append(f"node {self.facts.node}")
        return ", ".join(words)


class RollCall:
    """Collects the peers of one run."""

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        neighbours: Neighbours,
        hear: Callable[[int, Message], None],
        say: Callable[[str], None],
    ) -> None:
        """Create the roll call without listening.

        Args:
            plan: Plan of the check.
            facts: Facts of peer 0, which the other peers must match.
            neighbours: Receives the connections of admitted peers.
            hear: Called with each message of an admitted peer.
            say: Called with progress lines.
        """
        self._plan = plan
        self._facts = facts
        self._neighbours = neighbours
        self._hear = hear
        self._say = say
        self.peers: dict[int, Peer] = {}
        self._refused = ""
        self._over = False
        self._came = asyncio.Event()
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
        told = began - _TELL_EVERY
        while absent := self._absent():
            now = time.monotonic()
            if now >= deadline:
                raise FabricError(await self._never_came(absent, now - began))
            if now - told >= _TELL_EVERY:
                told = now
                limit = f"{now - began:.0f} s of {self._plan.join_limit:g} s"
                self._say(f"waiting for {self.names(absent)} ({limit})")
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._came.wait()
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
        told = 0.0
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
                    f"peer 0 cannot listen at --leader {host}:{port}: {reason}. The name must "
                    "resolve to this pod (a headless Service with publishNotReadyAddresses)"
                )
            if time.monotonic() - told >= _TELL_EVERY:
                told = time.monotonic()
                self._say(f"waiting: cannot listen at {host}:{port} yet: {reason}")
            await asyncio.sleep(BEAT)

    def _absent(self) -> list[int]:
        """Return the missing peers. Disconnected peers count as missing and can join again.

        Raises:
            FabricError: A peer was rejected because it does not match.
        """
        for index, loss in self._neighbours.look().items():
            self._say(f"peer {index} disconnected ({loss.detail}); waiting for it again")
            self.peers.pop(index, None)
        if self._refused:
            raise FabricError(self._refused)
        return [index for index in range(self._plan.peers) if index not in self.peers]

    def _accept(self, link: Link) -> None:
        task = asyncio.create_task(self._greet(link))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _greet(self, link: Link) -> None:
        """Admit a peer, or reject it with the reason; other clients are ignored."""
        came = _read_hello(await link.receive(_GREETING))
        if came is None:
            await link.close()
            return
        facts, port = came
        reason = self._why_not(facts) or self._why_not_now(facts)
        if reason is not None:
            link.send({"t": "refused", "text": reason})
            self._came.set()
            await link.close(FLUSH)
            return
        before = self._neighbours.links.get(facts.index)
        self._neighbours.lost.pop(facts.index, None)
        self._neighbours.links[facts.index] = link
        self.peers[facts.index] = Peer(facts, link.remote_address, port)
        link.start(lambda message: self._hear(facts.index, message))
        self._say(f"peer {facts.index} has joined: {self.peers[facts.index]}")
        self._came.set()
        if before is not None:
            await before.close()

    def _why_not(self, facts: Facts) -> str | None:
        """Return why a peer does not match, or ``None``. A mismatch ends the check."""
        reason = None
        differs = difference(self._facts, facts)
        if differs is not None:
            reason = f"the peers must run the same: {differs}"
        elif facts.index not in range(1, self._plan.peers):
            reason = f"{facts.name} joined as peer {facts.index} of {self._plan.peers}"
        if reason is not None and not self._over:
            self._refused = self._refused or reason
        return reason

    def _why_not_now(self, facts: Facts) -> str | None:
        """Return why a peer is too late or a duplicate, or ``None``."""
        if self._over:
            return "the check has begun without it: it joined too late or was restarted"
        if facts.index in self._neighbours.heard:
            other = self.peers[facts.index].facts.name
            return f"{other} and {facts.name} both joined as peer {facts.index}"
        return None

    async def _never_came(self, absent: list[int], waited: float) -> str:
        """Return an error text with the missing peers and whether their names resolve."""
        missing = "; ".join(await asyncio.gather(*map(self._missing, absent)))
        here = self.names(sorted(self.peers))
        return (
            f"{missing} did not join within {waited:.0f} s (joined: {here}): look at its pod and "
            "log (pending, pulling its image, no network?)"
        )

    async def _missing(self, index: int) -> str:
        name = self._plan.name(index)
        if not name:
            return f"peer {index}"
        try:
            address = await resolve(name, _LAST_LOOK_UP)
        except OSError as error:
            return f"peer {index} ({error}: its pod does not run yet)"
        return f"peer {index} ({name}, whose name resolves to {address})"


def _read_hello(message: Message | None) -> tuple[Facts, int] | None:
    """Return a peer's facts and port, or ``None`` for another kind of message."""
    if message is None or message["t"] != "hello":
        return None
    try:
        return Facts.of_message(message["facts"]), int(message["port"])
    except (KeyError, TypeError, ValueError):
        return None
