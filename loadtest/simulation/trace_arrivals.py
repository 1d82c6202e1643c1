"""Arrivals from many concurrent copies of a trace with different starting points. Pure, seeded.

At a load of 100, the fleet receives 100 copies of the trace at its original speed, so conversations
keep their pauses and prefixes. Copies share only the system prompt. With ``sample`` N, every N-th
copy is kept; a fraction of a copy consists of whole conversations, selected by a hash.
"""

import heapq
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.simulation.simulated_request import SimulatedRequest, TraceNames
from loadtest.trace import Request

_HASH = 2654435761
"""Knuth's multiplicative hash, The Art of Computer Programming 3, 6.4."""
_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class Load:
    """Concurrent copies of the trace: from ``low`` up to ``high`` and back."""

    low: float
    high: float
    seconds: float
    """Duration of the single rise and fall (a raised cosine), seconds."""

    def at(self, seconds: float) -> float:
        """Return the number of copies at a time."""
        swing = (1 - math.cos(2 * math.pi * seconds / self.seconds)) / 2
        return self.low + (self.high - self.low) * swing


def arrivals(
    requests: Sequence[Request],
    load: Load,
    *,
    block: int,
    longest: int,
    sample: int = 1,
    seed: int = 1,
) -> Iterator[SimulatedRequest]:
    """Yield the requests of all copies in order of time.

    Args:
        requests: Requests of the trace, in order of time.
        load: Concurrent copies over time.
        block: Block size of the trace, tokens.
        longest: Maximum tokens of prompt and response; longer prompts are truncated.
        sample: See the module's docstring.
        seed: Seed of the copies' starting points and of the selected conversations.
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
        yield SimulatedRequest(next(numbers), at, prompt, output, names)


def _copy(
    requests: Sequence[Request], copy: int, length: float, load: Load, sample: int, seed: int
) -> Iterator[tuple[float, int, int]]:
    """Yield (time, copy, index) of the requests of one copy, which repeats after its end."""
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
    """Identify a request's conversation by its third block; nearly all share the first two."""
    return request.blocks[min(2, len(request.blocks) - 1)] if request.blocks else 0


def _share(number: int, seed: int) -> float:
    """Return a pseudorandom number from 0 to 1."""
    mixed = (number + 1) * _HASH + seed * 40503
    mixed ^= mixed >> 15
    return (mixed * _HASH % _WORD) / _WORD
