"""Decides when lines run on ranks, and preempts them when other requests need the ranks.

A line waits for its turn in a queue that is fair between tenants. It is granted one as soon as a
rank has room (``headroom``). When there are more lines than room, the newest ones are preempted:
when a request is placed in the group, when a request finds no rank, and with each report. The
request of the line keeps its output and continues from there in its next turn.
"""

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from serving.admission.queue import FairQueue
from serving.batch.headroom import GroupUse, RankUse, Room, busiest_of, peak_alone, rooms
from serving.batch.recent import RecentQuantile
from serving.batch.step_model import UNKNOWN, StepModel, sample_between
from serving.request_context import Priority, RequestContext
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, RankId, RankLoad
from serving.settings import BatchSettings
from serving.telemetry import metrics
from serving.telemetry.model_counters import ModelCounters

INTERVAL = 0.1
"""Interval at which the room is computed while lines wait or run, seconds."""
_PEAKS = 10
"""Number of intervals over which the maximum number of requests on a rank is kept; longer than the
interval of reports."""
_PEAK_LOOKS = 10
"""Number of intervals after which the recent peak is computed again."""
_SLOW_LOOKS = 100
"""Number of intervals over which the time to first token is considered."""
_SHARE_ABOVE = 0.1
"""Fraction of requests that may exceed ``ttft_slo``."""
_PROMPT_SMOOTHING = 0.05
"""Weight of the latest line in the moving average of prompt tokens."""
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
    """Functions that preempt a line, in the order of placement."""
    peaks: deque[int] = field(default_factory=lambda: deque(maxlen=_PEAKS))


@dataclass(slots=True)
class _Group:
    """What is known of one epoch of a group."""

    busy: deque[tuple[int, int]]
    """Results of ``busiest_of`` at the intervals with other requests."""
    looks: int = 0
    model: StepModel = UNKNOWN
    loads: tuple[RankLoad, ...] = ()
    """Reports up to which the model knows the steps."""
    peak: float = 0.0
    starts_at: float = 0.0
    """Time at which the next lines may start alongside other requests, on the loop's clock."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a scheduler knows of its model."""

    snapshot: Callable[[], FleetSnapshot]
    """Returns the groups of the model now."""
    settings: BatchSettings
    """Objectives and reserves of the model."""
    counters: ModelCounters
    """What has been measured of the model's other requests; receives the number of lines."""


class LineScheduler:
    """Implements ``admission.api.Bystander``, for the groups of one model."""

    def __init__(self, source: ModelSource, weight_of: Callable[[str], float]) -> None:
        """Start without lines.

        Args:
            source: Groups, measurements and objectives of the model.
            weight_of: Returns the weight of a tenant.
        """
        self._snapshot = source.snapshot
        self._settings = source.settings
        self._weight_of = weight_of
        self._queue: FairQueue[_Turn] = FairQueue(requests=2**31, tokens=2**62, ageing=inf)
        self._ranks: defaultdict[RankId, _Rank] = defaultdict(_Rank)
        self._numbers = itertools.count()
        self._granted = 0
        """Granted turns whose lines have been neither placed nor declined."""
        self._groups: dict[tuple[str, str], _Group] = {}
        self._factor = 1.0
        self._prompt = 0.0
        """Moving average of the prompt tokens of lines."""
        self._room = 0
        """This scheduler's share of ``moe_batch_room_lines``."""
        self._counters = source.counters
        self._slow = RecentQuantile(
            lambda: (pool.first_token.buckets() for pool in source.counters.pools.values()),
            _SLOW_LOOKS,
        )
        # uvloop's handles do not expose their time.
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

    async def turn(self, context: RequestContext, tokens: int, prompt_tokens: int) -> None:
        """Wait until a rank has room for the line; see ``Yielding.turn``."""
        self._prompt += _PROMPT_SMOOTHING * (prompt_tokens - self._prompt)
        turn = _Turn(
            context.tenant,
            tokens,
            self._weight_of(context.tenant),
            asyncio.get_running_loop().create_future(),
        )
        if context.record.resumes:
            # Its output is in memory, and its KV cache may still be on a rank.
            self._queue.push_resumed(turn)
        else:
            self._queue.push(turn, 0.0)
        metrics.BATCH_WAITING.inc()
        self._counters.lines += 1
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
            self._counters.lines -= 1

    def placed(self, rank: RankId, give_way: Callable[[], None]) -> Callable[[], None]:
        """Record that a line runs on a rank; see ``Yielding.placed``."""
        self._granted -= 1
        number = next(self._numbers)
        self._ranks[rank].lines[number] = give_way
        metrics.BATCH_RUNNING.inc()
        self._counters.lines += 1

        lines = self._ranks[rank].lines

        def left() -> None:
            if lines.pop(number, None) is not None:
                metrics.BATCH_RUNNING.dec()
                self._counters.lines -= 1
                self._arm(0.0)

        return left

    def declined(self) -> None:
        """Record that no rank took a line, which then waits for another turn."""
        self._granted -= 1

    # -- Bystander ----------------------------------------------------------------------

    def arrived(self, rank: RankId) -> None:
        """Preempt lines in the group in which a request was placed, if there is less room."""
        if any(self._ranks[each].lines for each in list(self._ranks) if each.group == rank.group):
            self._preempt(self._rooms())

    def make_room(self) -> bool:
        """Preempt a quarter of the lines on each rank, because a request finds no rank."""
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
        """Compute the room, preempt lines on ranks with too many, and grant turns."""
        self._timer = None
        fleet = self._snapshot()
        self._learn(fleet)
        found = self._rooms(fleet)
        self._preempt(found)
        again = self._grant(found)
        busy = bool(self._queue or self.running or self._granted)
        self._show_room(sum(room.lines for room in found.values()) if busy else 0)
        if busy:
            self._arm(min(again, INTERVAL))

    def _show_room(self, lines: int) -> None:
        metrics.BATCH_ROOM.inc(lines - self._room)
        self._room = lines

    def _rooms(self, fleet: FleetSnapshot | None = None) -> dict[RankId, Room]:
        return rooms(
            fleet or self._snapshot(),
            self._uses(),
            {key: GroupUse(group.model, group.peak) for key, group in self._groups.items()},
            self._settings,
            factor=self._factor,
            prompt=self._prompt,
        )

    def _uses(self) -> dict[RankId, RankUse]:
        return {
            rank_id: RankUse(len(rank.lines), max(rank.peaks, default=0))
            for rank_id, rank in self._ranks.items()
        }

    def _learn(self, fleet: FleetSnapshot) -> None:
        """Update what is known of the groups with the ranks' latest reports."""
        current = set()
        for group in fleet.groups:
            current.add((group.group_id, group.epoch))
            for rank in group.ranks:
                self._ranks[rank.rank_id].peaks.append(rank.inflight_requests)
        uses = self._uses()
        for group in fleet.groups:
            self._learn_group(group, uses)
        for key in self._groups.keys() - current:
            del self._groups[key]
        for rank_id in [each for each in self._ranks if each.group not in current]:
            if not self._ranks[rank_id].lines:
                del self._ranks[rank_id]
        if self._settings.ttft_slo is not None:
            self._slow.look()
            if self._slow.above(self._settings.ttft_slo, _SHARE_ABOVE):
                self._factor = max(self._factor / 2, _SMALLEST_FACTOR)
            else:
                self._factor = min(self._factor + _RECOVERY, 1.0)

    def _learn_group(self, group: GroupSnapshot, uses: Mapping[RankId, RankUse]) -> None:
        key = (group.group_id, group.epoch)
        known = self._groups.get(key)
        if known is None:
            length = int(self._settings.peak_window / INTERVAL)
            known = self._groups[key] = _Group(deque(maxlen=length))
        others, total = busiest_of(group, uses)
        if others:
            known.busy.append((others, total))
        elif known.busy:
            known.busy.popleft()  # a pause shortens the window
        known.looks += 1
        if known.looks % _PEAK_LOOKS == 1 or not known.busy:
            known.peak = peak_alone(known.busy, known.model)
        loads = tuple(rank.load for rank in group.ranks)
        if len(loads) != len(known.loads):
            known.loads = loads
        elif any(
            new.engine_steps_total != old.engine_steps_total
            for old, new in zip(known.loads, loads, strict=True)
        ):
            sample = sample_between(known.loads, loads)
            known.loads = loads
            if sample is not None:
                known.model = known.model.after(sample)

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

    def _grant(self, found: dict[RankId, Room]) -> float:
        """Grant turns as far as there is room.

        Alongside other requests, a rank starts one line per step, because prompts lengthen it.

        Returns:
            Time until further turns can be granted, seconds.
        """
        now, again, free = asyncio.get_running_loop().time(), INTERVAL, 0
        paced: set[tuple[str, str]] = set()
        for rank_id, room in found.items():
            here = room.starts - len(self._ranks[rank_id].lines)
            if here <= 0:
                continue
            if not room.beside:
                free += here
                continue
            wait = self._groups[rank_id.group].starts_at - now
            if wait > 0:
                again = min(again, wait)
            else:
                paced.add(rank_id.group)
                free += 1
        free -= self._granted
        if free <= 0:
            return again
        while free > 0 and self._queue:
            turn = self._queue.pop(0.0)
            if not turn.granted.done():
                turn.granted.set_result(None)
                self._granted += 1
                free -= 1
        for key in paced:
            group = self._groups[key]
            times = group.model.times
            step = INTERVAL if times is None else min(times.seconds(group.peak), INTERVAL)
            group.starts_at = now + step
            again = min(again, step)
        return again


def _take(rank: _Rank, lines: int) -> int:
    """Preempt the newest lines on a rank; return their number."""
    newest = list(itertools.islice(reversed(rank.lines.values()), max(lines, 0)))
    for give_way in newest:
        give_way()
    return len(newest)
