"""Sequence numbers that tell the ranks of a group which collective the other ranks have reached."""

import os
import select
import time
from collections.abc import Sequence

from serving.engine.cpu_plugin.node_exchange import futex
from serving.engine.cpu_plugin.node_exchange.segment import Segment

STRIDE = 64
"""Bytes between the words of two ranks: a cache line, which avoids false sharing."""

_WORDS = STRIDE // 4
_CHECKS = 16
"""Number of polls of the word between two reads of the clock."""
_SLICE = 0.05
"""Maximum sleep before checking that the other process is alive, seconds."""
_MOST_SKIPPED = 63
"""Maximum number of waits without spinning after failed spins."""
_MODULUS = 2**32


class PeerLost(RuntimeError):
    """A process of the group has ended, or did not arrive in time."""


class Spin:
    """Decides whether to spin at the next wait.

    Spinning avoids a sleep if the other rank runs on another core. If the two ranks share a core,
    or other processes need it, spinning only delays the other rank. Each failed spin therefore
    doubles the number of subsequent waits without spinning, and a successful spin resets it.
    """

    def __init__(self) -> None:
        self._penalty = 0
        self._left = 0

    def due(self) -> bool:
        """Return whether to spin now."""
        self._left -= 1
        return self._left < 0

    def done(self, *, arrived: bool) -> None:
        """Record the result of a spin."""
        self._penalty = 0 if arrived else min(2 * self._penalty + 1, _MOST_SKIPPED)
        self._left = self._penalty


class Arrivals:
    """The sequence numbers of this rank and of the other ranks.

    A number counts the collectives that its rank has entered, modulo 2**32. A rank enters the next
    collective only after all others have entered the current one, so numbers differ by at most 1.
    """

    def __init__(
        self,
        segment: Segment,
        offset: int,
        rank: int,
        pids: Sequence[int],
        *,
        spin: float,
        timeout: float,
    ) -> None:
        """Open a handle to every other process.

        Args:
            segment: Memory with the words, zero at first, one per rank every ``STRIDE`` bytes.
            offset: Byte offset of the first word.
            rank: This rank.
            pids: Process ids by rank. They must stay alive until all ranks have called this.
            spin: Maximum time to spin before sleeping, seconds.
            timeout: Maximum time to wait for a rank, seconds.

        Raises:
            OSError: A process cannot be watched.
        """
        self._words = segment.words
        self._first = offset // 4
        self._address = segment.address + offset
        self._rank = rank
        self._others = [other for other in range(len(pids)) if other != rank]
        self._pids = pids
        self._limit = int(spin * 1e9)
        self._spin = Spin()
        self._timeout = timeout
        self.number = 0
        """Number of the current collective."""
        self._handles: dict[int, int] = {}
        try:
            for other in self._others:
                self._handles[other] = os.pidfd_open(pids[other])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the handles of the other processes."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def enter(self, check: int) -> None:
        """Announce that this rank has written its data for the next collective.

        Args:
            check: Value that is equal on all ranks if they agree on the collective.
        """
        self.number = (self.number + 1) % _MODULUS
        word = self._first + self._rank * _WORDS
        self._words[word + 1 + self.number % 2] = check
        # The number is stored last; x86-64 does not reorder stores.
        self._words[word] = self.number
        futex.wake(self._address + self._rank * STRIDE)

    def wait(self, check: int) -> None:
        """Wait until all ranks have entered the current collective.

        Args:
            check: The value that this rank passed to :meth:`enter`.

        Raises:
            PeerLost: A process has ended, or the timeout has expired.
            RuntimeError: A rank entered with another value.
        """
        words, before = self._words, (self.number - 1) % _MODULUS
        for other in self._others:
            word = self._first + other * _WORDS
            if words[word] == before:
                self._wait_for(other, word, before)
            if words[word + 1 + self.number % 2] != check:
                raise RuntimeError(
                    f"ranks {self._rank} and {other} disagree about the size of a collective"
                )

    def _wait_for(self, other: int, word: int, before: int) -> None:
        words, started = self._words, time.monotonic_ns()
        if self._limit and self._spin.due():
            arrived = self._spin_for(word, before)
            self._spin.done(arrived=arrived)
            if arrived:
                return
        address = self._address + other * STRIDE
        while words[word] == before:
            futex.wait(address, before, _SLICE)
            if words[word] != before:
                return
            waited = (time.monotonic_ns() - started) / 1e9
            if waited > _SLICE and self._ended(other) and words[word] == before:
                raise PeerLost(
                    f"exchange between ranks: process {self._pids[other]} of rank {other} has ended"
                )
            if waited > self._timeout:
                raise PeerLost(
                    f"exchange between ranks: rank {other} did not arrive within "
                    f"{self._timeout:g} s"
                )

    def _spin_for(self, word: int, before: int) -> bool:
        """Poll a word until it changes; return False if it does not change within the limit."""
        words, end = self._words, time.monotonic_ns() + self._limit
        while time.monotonic_ns() < end:
            for _ in range(_CHECKS):
                if words[word] != before:
                    return True
        return False

    def _ended(self, other: int) -> bool:
        poll = select.poll()
        poll.register(self._handles[other], select.POLLIN)
        return bool(poll.poll(0))
