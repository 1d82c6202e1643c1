"""A simulated expert-parallel group: ranks that step together, each with a queue and a KV cache.

This is a coarse model of vLLM's scheduler. Running sequences get one token per step. The rest of
the step's token budget goes to prompts in order of arrival, in chunks if chunked prefill is
enabled. A sequence is scheduled once the KV cache has room for its prompt and its whole response.
vLLM is more permissive: it schedules more sequences, and preempts some when memory runs out.

Consecutive steps without changes (no prompt, no end of a sequence) are simulated as one event of at
most ``HORIZON``: the cost of a group grows with its requests rather than its tokens.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from loadtest.simulation.calibration import Calibration
from loadtest.simulation.prefix_cache import PrefixCache
from loadtest.simulation.simulated_request import SimulatedRequest
from serving.routing.snapshot import GroupSnapshot, MemberState, RankLoad, RankSnapshot

HORIZON = 0.5
"""Maximum duration of an event, seconds: the interval of load reports (``link.load_interval``)."""
_SLACK = 1e-9


@dataclass(slots=True)
class StepResult:
    """The result of one or more steps."""

    begun: list[SimulatedRequest] = field(default_factory=list)
    """Sequences that got their first token."""
    ended: list[SimulatedRequest] = field(default_factory=list)
    tokens: int = 0
    """Number of generated tokens, excluding first tokens."""
    seconds: float = 0.0
    """Duration of the steps, seconds."""


@dataclass(slots=True)
class SimulatedRank:
    """One rank of a simulated group."""

    calibration: Calibration
    cache: PrefixCache
    waiting: deque[SimulatedRequest] = field(default_factory=deque)
    prefilling: deque[SimulatedRequest] = field(default_factory=deque)
    """Scheduled sequences whose prompt is only partly computed."""
    running: list[tuple[int, int, SimulatedRequest]] = field(default_factory=list)
    """Heap of (tick of its end, number, sequence)."""
    ticks: int = 0
    """Number of steps with running sequences."""
    kv_used: int = 0
    outstanding: int = 0
    """Number of prompt and output tokens still to compute."""
    chunks: list[tuple[SimulatedRequest, int]] = field(default_factory=list)
    """Number of prompt tokens computed in the current step."""
    numbers: "count[int]" = field(default_factory=count)

    @property
    def inflight(self) -> int:
        """Number of requests on this rank, including waiting ones."""
        return len(self.waiting) + len(self.prefilling) + len(self.running)

    def submit(self, sequence: SimulatedRequest) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)
        self.outstanding += sequence.prompt_tokens + sequence.left

    def plan(self) -> int:
        """Select the prompts of the next step and return the number of its prompt tokens."""
        if not self.prefilling and not self.waiting:
            return 0
        limits = self.calibration
        budget = limits.batch_tokens - len(self.running)
        total = 0
        for sequence in self.prefilling:
            took = min(sequence.uncomputed, budget - total)
            if took <= 0:
                break
            self.chunks.append((sequence, took))
            total += took
        while self.waiting and total < budget:
            sequence = self.waiting[0]
            need = sequence.prompt_tokens + sequence.left
            if (
                len(self.running) + len(self.prefilling) >= limits.max_num_seqs
                or self.kv_used + need > limits.kv_tokens
            ):
                break
            cached = self.cache.matched(sequence.names) if limits.prefix_caching else 0
            rest = sequence.prompt_tokens - cached
            took = rest if not limits.chunked_prefill else min(rest, budget - total)
            if took > budget - total and (total or self.running):
                break  # does not fit into this step and cannot be chunked
            self.waiting.popleft()
            self._schedule(sequence, need, cached)
            self.chunks.append((sequence, took))
            total += took
        return total

    def _schedule(self, sequence: SimulatedRequest, need: int, cached: int) -> None:
        self.kv_used += need
        sequence.kv_tokens = need
        sequence.cached = cached
        sequence.uncomputed = sequence.prompt_tokens - cached
        self.prefilling.append(sequence)
        if self.calibration.prefix_caching:
            self._trim()

    def finish(self, steps: int, now: float, made: StepResult) -> None:
        """Complete ``steps`` equal steps that end at ``now`` and add their result to ``made``."""
        if self.running:
            self.ticks += steps
            made.tokens += steps * len(self.running)
            self.outstanding -= steps * len(self.running)
            while self.running and self.running[0][0] <= self.ticks:
                sequence = heappop(self.running)[2]
                sequence.left = 0
                self._leave(sequence)
                made.ended.append(sequence)
        for sequence, took in self.chunks:
            sequence.uncomputed -= took
            if sequence.uncomputed:
                continue
            self.prefilling.remove(sequence)
            if sequence.first_at is None:
                sequence.first_at = now
                made.begun.append(sequence)
            sequence.left -= 1
            self.outstanding -= sequence.prompt_tokens + 1
            if self.calibration.prefix_caching:
                self.cache.store(sequence.names)
            if sequence.left:
                sequence.ends_at_tick = self.ticks + sequence.left
                heappush(self.running, (sequence.ends_at_tick, next(self.numbers), sequence))
            else:
                self._leave(sequence)
                made.ended.append(sequence)
        self.chunks.clear()

    def steps_to_end(self) -> int:
        """Return the steps until the first running sequence ends; 0 if none is running."""
        return self.running[0][0] - self.ticks if self.running else 0

    def evict(self) -> list[SimulatedRequest]:
        """Drop all sequences; return the unfinished ones with their remaining tokens."""
        left = [*self.waiting, *self.prefilling]
        for ends_at, _, sequence in self.running:
            sequence.left = ends_at - self.ticks
            left.append(sequence)
        self.waiting.clear()
        self.prefilling.clear()
        self.running.clear()
        self.chunks.clear()
        self.kv_used = self.outstanding = 0
        return left

    def _leave(self, sequence: SimulatedRequest) -> None:
        self.kv_used -= sequence.kv_tokens
        if self.calibration.prefix_caching:
            self.cache.release(sequence.names)
            self._trim()

    def _trim(self) -> None:
        room = self.calibration.kv_tokens - self.kv_used
        self.cache.trim(max(room, 0) // self.calibration.kv_block)


@dataclass(slots=True, eq=False)
class SimulatedGroup:
    """A gang of ranks that step together and fail together."""

    group_id: str
    calibration: Calibration
    asked_at: float
    state: MemberState = MemberState.JOINING
    gone: bool = False
    ranks: list[SimulatedRank] = field(init=False)
    until: float | None = None
    """End of the current steps, seconds; None while idle."""
    version: int = 0
    """Version of the event that ends the current steps; events with other versions are stale."""
    dirty: bool = True
    """Whether the snapshot is stale."""
    _steps: int = 0
    _began: float = 0.0
    _step_seconds: float = 0.0
    _snapshot: GroupSnapshot | None = None

    def __post_init__(self) -> None:
        """Create the ranks."""
        block = self.calibration.kv_block
        self.ranks = [
            SimulatedRank(self.calibration, cache=PrefixCache(block))
            for _ in range(self.calibration.ranks)
        ]

    @property
    def inflight(self) -> int:
        """Number of requests on this group."""
        return sum(rank.inflight for rank in self.ranks)

    @property
    def step_seconds(self) -> float:
        """Duration of each of the current steps, seconds."""
        return self._step_seconds

    def submit(self, rank: int, sequence: SimulatedRequest, now: float) -> bool:
        """Submit a request to a rank; return whether ``until`` has changed."""
        self.ranks[rank].submit(sequence)
        self.dirty = True
        if self.until is None:
            return self.start(now)
        # Combined steps end with the one in progress.
        passed = max(1, math.ceil((now - self._began) / self._step_seconds - _SLACK))
        if passed >= self._steps:
            return False
        self._steps = passed
        # Rounding must not move the end before now.
        self.until = max(self._began + passed * self._step_seconds, now)
        self.version += 1
        return True

    def start(self, now: float) -> bool:
        """Start the next steps if there is work; return whether steps were started."""
        sequences = prompts = 0
        fewest = 0
        for rank in self.ranks:
            prompts = max(prompts, rank.plan())
            if rank.running:
                sequences = max(sequences, len(rank.running))
                ends = rank.steps_to_end()
                fewest = min(fewest, ends) if fewest else ends
        if not sequences and not prompts:
            self.until = None
            return False
        step = self.calibration.step.seconds(sequences, prompts)
        steps = 1 if prompts else min(fewest, max(1, int(HORIZON / step)))
        self._began, self._step_seconds, self._steps = now, step, steps
        self.until = now + steps * step
        self.version += 1
        return True

    def finish(self, now: float) -> StepResult:
        """Complete the current steps and return their result."""
        made = StepResult(seconds=self._steps * self._step_seconds)
        for rank in self.ranks:
            rank.finish(self._steps, now, made)
        self.until = None
        self.dirty = True
        return made

    def evict(self) -> list[SimulatedRequest]:
        """Stop the current steps and return the unfinished sequences."""
        self.until = None
        self.version += 1
        self.dirty = True
        return [sequence for rank in self.ranks for sequence in rank.evict()]

    def snapshot(self) -> GroupSnapshot:
        """Return the snapshot of the group for routing."""
        if self.dirty or self._snapshot is None:
            self._snapshot = self._taken()
            self.dirty = False
        return self._snapshot

    def _taken(self) -> GroupSnapshot:
        limits = self.calibration
        return GroupSnapshot(
            self.group_id,
            "1",
            self.state,
            "",
            self.asked_at,
            limits.ranks,
            ranks=tuple(
                RankSnapshot(
                    group_id=self.group_id,
                    epoch="1",
                    rank=index,
                    healthy=True,
                    inflight_requests=rank.inflight,
                    outstanding_tokens=rank.outstanding,
                    load=RankLoad(
                        running_requests=len(rank.running) + len(rank.prefilling),
                        waiting_requests=len(rank.waiting),
                        kv_usage=rank.kv_used / limits.kv_tokens,
                    ),
                    max_model_len=limits.max_model_len,
                    max_num_seqs=limits.max_num_seqs,
                    kv_blocks=limits.kv_tokens // limits.kv_block,
                    kv_block_size=limits.kv_block,
                )
                for index, rank in enumerate(self.ranks)
            ),
        )
