"""Keeps suspects apart: no two of them in their first tokens on one group.

At most one is on probation for each ready group, the others wait here, in the order in which they
came, and not in the admission queue: there they would be in the way of requests that nothing is
held against. A probation is short (``suspicion.PROBATION_TOKENS``), so the wait is some steps of
the engine for each suspect before.
"""

import asyncio
from collections import deque
from collections.abc import Callable

GroupKey = tuple[str, str]
"""Group id and epoch."""


class Probation:
    """One suspect's leave to run; ends after so many tokens, or with its stay on the rank."""

    __slots__ = ("_end", "_ended", "_tokens", "alone", "group")

    def __init__(self, tokens: int, end: "Callable[[Probation], None]") -> None:
        """Begin; ``Quarantine.enter`` does that."""
        self.group: GroupKey | None = None
        self.alone = True
        """Whether no other suspect was on probation on its group; false once it is over well."""
        self._tokens = tokens
        self._end = end
        self._ended = False

    def progress(self, seen_tokens: int) -> None:
        """Note what its rank has generated; enough of it ends the probation."""
        if seen_tokens >= self._tokens and not self._ended:
            self.alone = False
            self.end()

    def end(self) -> None:
        """Let the next one start. Safe to call twice."""
        if not self._ended:
            self._ended = True
            self._end(self)


class Quarantine:
    """The suspects of one router. All calls come from one event loop."""

    def __init__(self, places: Callable[[], int]) -> None:
        """Be empty.

        Args:
            places: how many groups are ready. With none, one suspect goes on to wait among the
                parked requests, where it is seen to be waiting for a group.
        """
        self._places = places
        self._running: set[Probation] = set()
        self._waiting: deque[tuple[Probation, asyncio.Future[None]]] = deque()

    @property
    def occupied(self) -> frozenset[GroupKey]:
        """Groups where a suspect is on probation."""
        return frozenset(each.group for each in self._running if each.group is not None)

    @property
    def running(self) -> int:
        """Suspects on probation."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Suspects whose turn has not come."""
        return len(self._waiting)

    async def enter(self, tokens: int, timeout: float) -> Probation:
        """Wait for a turn.

        Args:
            tokens: what ends the probation.
            timeout: seconds.

        Raises:
            TimeoutError: it did not come.
        """
        probation = Probation(tokens, self._ended)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((probation, turn))
        self.wake()
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException:
            if (probation, turn) in self._waiting:
                self._waiting.remove((probation, turn))
            probation.end()  # its turn may have come just now
            raise
        return probation

    def placed(self, probation: Probation, group: GroupKey) -> None:
        """Note where a suspect runs; who shares a group with another is not alone."""
        probation.group = group
        sharing = [each for each in self._running if each.group == group]
        if len(sharing) > 1:
            for each in sharing:
                each.alone = False

    def wake(self) -> None:
        """Let in as many as there are places for: a group came, or a probation ended."""
        while self._waiting and len(self._running) < max(self._places(), 1):
            probation, turn = self._waiting.popleft()
            self._running.add(probation)
            turn.set_result(None)

    def _ended(self, probation: Probation) -> None:
        self._running.discard(probation)
        self.wake()
