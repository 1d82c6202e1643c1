"""A trace as arrivals, many times over: copies of it, each begun at another place. Pure, seeded.

At a load of 100 the fleet gets 100 copies of the trace at the same time, none faster than it was:
conversations keep their pauses and their prefixes. Copies share the system prompt alone. With
``sample`` N every N-th copy is kept; parts of a copy are whole conversations, picked by a hash.
"""

import heapq
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from loadtest.simulation.sequence import Sequence, TraceNames
from loadtest.trace import Request

_HASH = 2654435761
"""Knuth's multiplicative hash, The Art of Computer Programming 3, 6.4."""
_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class Load:
    """Copies of the trace at a time: ``low``, or from ``low`` up to ``high`` and back."""

    low: float
    high: float
    seconds: float
    """Over which it rises and falls once, as a raised cosine."""

    def at(self, seconds: float) -> float:
        """Return the copies at a time."""
        swing = (1 - math.cos(2 * math.pi * seconds / self.seconds)) / 2
        return self.low + (self.high - self.low) * swing


def arrivals(
    requests: Items[Request],
    load: Load,
    *,
    block: int,
    longest: int,
    sample: int = 1,
    seed: int = 1,
) -> Iterator[Sequence]:
    """Yield the requests of all copies in order of time.

    Args:
        requests: of the trace, in order of time.
        load: how many copies, when.
        block: tokens of a block of the trace.
        longest: most tokens of a prompt and its answer; longer prompts are cut.
        sample: see the module.
        seed: of where copies begin and which conversations are picked.
    """
    copies = math.ceil(max(load.low, load.high) / sample)
    length = max(requests[-1].at - requests[0].at, 0.0) + 1.0
    numbers = itertools.count()
    due = heapq.merge(
        *(_copy(requests, copy, length, load, sample, seed) for copy in range(copies))
    )
    for at, copy, index in due:
        request = requests[index]
        output = min(request.output_tokens, longest - 1)
        prompt = min(request.prompt_tokens, longest - output)
        names = TraceNames(prompt, request.blocks, copy, block)
        yield Sequence(next(numbers), at, prompt, output, names)


def _copy(
    requests: Items[Request], copy: int, length: float, load: Load, sample: int, seed: int
) -> Iterator[tuple[float, int, int]]:
    """Yield (time, copy, index) of what one copy sends; it goes round after its end."""
    shift = _share(copy, seed) * length if copy or seed != 1 else 0.0
    begin = requests[0].at
    first = bisect_left(requests, shift, key=lambda request: request.at - begin)
    for turn in itertools.count():
        for place in range(len(requests)):
            index = (first + place) % len(requests)
            wrapped = first + place >= len(requests)
            at = requests[index].at - begin - shift + (turn + wrapped) * length
            if at >= load.seconds:
                return
            if copy + _share(_conversation(requests[index]) + copy, seed) < load.at(at) / sample:
                yield at, copy, index


def _conversation(request: Request) -> int:
    """Name what a request belongs to: its third block, nearly all share the first or two."""
    return request.blocks[min(2, len(request.blocks) - 1)] if request.blocks else 0


def _share(number: int, seed: int) -> float:
    """Return a number from 0 to 1 that looks random."""
    mixed = (number + 1) * _HASH + seed * 40503
    mixed ^= mixed >> 15
    return (mixed * _HASH % _WORD) / _WORD
