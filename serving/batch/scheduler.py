"""Decides when lines run on ranks, and takes them off when other requests need the ranks.

A line waits for its turn in a queue that is fair between tenants. It gets one as soon as a rank
has room (``headroom``), and loses its rank, newest lines first, as soon as there is less room than
lines: when a request arrives on the rank, when one finds no rank, and with every report. The
request of the line keeps its output and continues from there in its next turn.
"""

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from serving.admission.queue import FairQueue
from serving.batch.headroom import RankUse, Room, StepModel, rooms
from serving.batch.recent import RecentQuantile
from serving.request_context import Priority, RequestContext
from serving.routing.snapshot import FleetSnapshot, RankId
from serving.settings import BatchSettings
from serving.telemetry import metrics

INTERVAL = 0.1
"""Interval at which room is computed while lines wait or run, seconds."""
_PEAKS = 10
"""Intervals over which the most requests on a rank are remembered; longer than a report takes."""
_SLOW_LOOKS = 100
"""Intervals over which the time to first token is considered."""
_SHARE_ABOVE = 0.1
"""Fraction of requests that may exceed ``ttft_slo``."""
_SMALLEST_FACTOR = 1 / 64
_RECOVERY = 0.01
"""Amount by which the factor grows per interval without slow requests."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A line that waits for its turn."""

    tenant: str
    tokens: int
    weight: float
    granted: asyncio.Future[None]
    priority: Priority = Priority.BATCH


@dataclass(slots=True)
class _Rank:
    """What is known of one rank."""

    lines: dict[int, Callable[[], None]] = field(default_factory=dict)
    """Functions that take a line off the rank, in the order of placement."""
    peaks: deque[int] = field(default_factory=lambda: deque(maxlen=_PEAKS))


class LineScheduler:
    """Implements ``admission.api.Bystander``, for the groups of one model."""

    def __init__(
        self,
        snapshot: Callable[[], FleetSnapshot],
        settings: BatchSettings,
        weight_of: Callable[[str], float],
    ) -> None:
        """Start without lines.

        Args:
            snapshot: Returns the groups of the model now.
            settings: Objectives and reserves.
            weight_of: Returns the weight of a tenant.
        """
        self._snapshot = snapshot
        self._settings = settings
        self._weight_of = weight_of
        self._queue: FairQueue[_Turn] = FairQueue(requests=2**31, tokens=2**62, ageing=inf)
        self._ranks: defaultdict[RankId, _Rank] = defaultdict(_Rank)
        self._numbers = itertools.count()
        self._granted = 0
        """Turns granted to lines that are not placed or declined yet."""
        self._models: dict[tuple[str, str], StepModel] = {}
        self._steps: dict[tuple[str, str], int] = {}
        self._factor = 1.0
        self._room = 0
        """This scheduler's part of ``moe_batch_room_lines``."""
        self._slow = RecentQuantile(metrics.RANK_TIME_TO_FIRST_TOKEN, _SLOW_LOOKS)
        # uvloop's handles do not know their time.
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    @property
    def running(self) -> int:
        """Number of lines on ranks."""
        return sum(len(rank.lines) for rank in self._ranks.values())

    @property
    def waiting(self) -> int:
        """Number of lines that wait for their turn."""
        return len(self._queue)

    # -- lines --------------------------------------------------------------------------

    async def turn(self, context: RequestContext, tokens: int) -> None:
        """Wait until a rank has room for the line; see ``Yielding.turn``."""
        turn = _Turn(
            context.tenant,
            tokens,
            self._weight_of(context.tenant),
            asyncio.get_running_loop().create_future(),
        )
        if context.record.resumes:
            # It holds its output in memory, and perhaps its KV cache in a rank.
            self._queue.push_resumed(turn)
        else:
            self._queue.push(turn, 0.0)
        metrics.BATCH_WAITING.inc()
        self._arm(0.0)
        try:
            await turn.granted
        except BaseException:
            if turn.granted.done() and not turn.granted.cancelled():
                self._granted -= 1
            self._queue.discard(turn)
            raise
        finally:
            metrics.BATCH_WAITING.dec()

    def placed(self, rank: RankId, give_way: Callable[[], None]) -> Callable[[], None]:
        """Record that a line runs on a rank; see ``Yielding.placed``."""
        self._granted -= 1
        number = next(self._numbers)
        self._ranks[rank].lines[number] = give_way
        metrics.BATCH_RUNNING.inc()

        lines = self._ranks[rank].lines

        def left() -> None:
            if lines.pop(number, None) is not None:
                metrics.BATCH_RUNNING.dec()
                self._arm(0.0)

        return left

    def declined(self) -> None:
        """Record that no rank took a line; it asks for another turn."""
        self._granted -= 1

    # -- Bystander ----------------------------------------------------------------------

    def arrived(self, rank: RankId) -> None:
        """Take lines off the ranks of the group in which a request was placed, if need be."""
        if any(self._ranks[each].lines for each in list(self._ranks) if each.group == rank.group):
            self._preempt(self._rooms())

    def make_room(self) -> bool:
        """Take a quarter of the lines off their ranks, because a request finds no rank."""
        taken = 0
        for rank in self._ranks.values():
            taken += _take(rank, -(-len(rank.lines) // 4))
        self._count(taken)
        return taken > 0

    # -- regularly ----------------------------------------------------------------------

    def stop(self) -> None:
        """Stop granting turns."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._show_room(0)

    def _arm(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Compute the room, take lines off ranks with too many, and grant turns."""
        self._timer = None
        fleet = self._snapshot()
        self._learn(fleet)
        found = self._rooms(fleet)
        self._preempt(found)
        self._grant(found)
        busy = bool(self._queue or self.running or self._granted)
        self._show_room(sum(room.lines for room in found.values()) if busy else 0)
        if busy:
            self._arm(INTERVAL)

    def _show_room(self, lines: int) -> None:
        metrics.BATCH_ROOM.inc(lines - self._room)
        self._room = lines

    def _rooms(self, fleet: FleetSnapshot | None = None) -> dict[RankId, Room]:
        uses = {
            rank_id: RankUse(len(rank.lines), max(rank.peaks, default=0))
            for rank_id, rank in self._ranks.items()
        }
        return rooms(
            fleet or self._snapshot(), uses, self._models, self._settings, factor=self._factor
        )

    def _learn(self, fleet: FleetSnapshot) -> None:
        """Take in the ranks' reports since the last look."""
        current = set()
        for group in fleet.groups:
            key = (group.group_id, group.epoch)
            current.add(key)
            for rank in group.ranks:
                self._ranks[rank.rank_id].peaks.append(rank.inflight_requests)
            loads = [rank.load for rank in group.ranks]
            steps = sum(load.engine_steps_total for load in loads)
            busiest = max((load.running_requests for load in loads), default=0)
            if busiest and steps != self._steps.get(key):
                self._steps[key] = steps
                seconds = max(load.step_seconds for load in loads)
                self._models[key] = self._models.get(key, StepModel()).after(busiest, seconds)
        for key in self._models.keys() - current:
            del self._models[key]
            self._steps.pop(key, None)
        for rank_id in [each for each in self._ranks if each.group not in current]:
            if not self._ranks[rank_id].lines:
                del self._ranks[rank_id]
        if self._settings.ttft_slo is not None:
            self._slow.look()
            if self._slow.above(self._settings.ttft_slo, _SHARE_ABOVE):
                self._factor = max(self._factor / 2, _SMALLEST_FACTOR)
            else:
                self._factor = min(self._factor + _RECOVERY, 1.0)

    def _preempt(self, found: dict[RankId, Room]) -> None:
        taken = 0
        for rank_id, room in found.items():
            rank = self._ranks.get(rank_id)
            if rank is not None:
                taken += _take(rank, len(rank.lines) - room.lines)
        self._count(taken)

    def _count(self, taken: int) -> None:
        if taken:
            metrics.BATCH_PREEMPTIONS.inc(taken)

    def _grant(self, found: dict[RankId, Room]) -> None:
        free = sum(
            max(room.lines - len(self._ranks[rank_id].lines), 0)
            for rank_id, room in found.items()
            if room.more
        )
        free -= self._granted
        while free > 0 and self._queue:
            turn = self._queue.pop(0.0)
            if not turn.granted.done():
                turn.granted.set_result(None)
                self._granted += 1
                free -= 1


def _take(rank: _Rank, lines: int) -> int:
    """Take the newest lines off a rank; return their number."""
    newest = list(itertools.islice(reversed(rank.lines.values()), max(lines, 0)))
    for give_way in newest:
        give_way()
    return len(newest)
