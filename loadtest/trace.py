"""Traces of requests: in Mooncake's format (with shared prefixes), as CSV, or generated."""

import csv
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from serving.client.errors import InvalidRequest

TRACE_BLOCK = 512
"""Tokens per block; the trace has one id for each block."""
_MOST_TOKENS = 10**7
"""Maximum length of a prompt or answer, tokens; the blocks of a longer prompt would exhaust the
memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace: its time, its lengths, and the blocks of its prompt."""

    at: float
    """Seconds since the start of the trace."""
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Ids of the prompt's blocks. Equal ids mean equal tokens; the last block can be partial."""

    def scaled(self, block: int, *, longest: int, most_output: int) -> "Request":
        """Return the request scaled to ``block`` tokens for each ``TRACE_BLOCK`` of the trace.

        Args:
            block: Tokens of a block.
            longest: Maximum prompt length, tokens.
            most_output: Maximum answer length, tokens.
        """
        tokens = max(self.prompt_tokens * block // TRACE_BLOCK, 1)
        tokens = min(tokens, longest, len(self.blocks) * block)
        return replace(
            self,
            prompt_tokens=tokens,
            output_tokens=max(min(self.output_tokens * block // TRACE_BLOCK, most_output), 1),
            blocks=self.blocks[: -(-tokens // block)],
        )


def read_trace(path: Path) -> list[Request]:
    """Return the requests of a trace in Mooncake's format.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a JSON object.
        KeyError: A line lacks a field.
    """
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines if line.strip()]
    return [
        Request(
            entry["timestamp"] / 1000,
            entry["input_length"],
            entry["output_length"],
            tuple(entry["hash_ids"]),
        )
        for entry in entries
    ]


def read_csv(path: Path) -> list[Request]:
    """Return the requests of a CSV file with the columns timestamp, prompt_tokens, output_tokens.

    Timestamps are seconds or ISO 8601 times. Prompts share no prefixes.

    Raises:
        OSError: The file cannot be read.
        ValueError: A value is not a number.
        KeyError: A column is missing.
    """
    fresh = itertools.count()
    requests = []
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, skipinitialspace=True):
            prompt = int(row["prompt_tokens"])
            count = -(-min(prompt, _MOST_TOKENS) // TRACE_BLOCK)
            blocks = tuple(next(fresh) for _ in range(count))
            requests.append(
                Request(_seconds(row["timestamp"]), prompt, int(row["output_tokens"]), blocks)
            )
    return requests


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def load_trace(path: Path) -> list[Request]:
    """Return the requests of a trace in order of time; ``.csv`` files are read as CSV.

    Raises:
        InvalidRequest: The file cannot be read, or is not a trace.
    """
    try:
        requests = read_csv(path) if path.suffix == ".csv" else read_trace(path)
    except OSError as error:
        raise InvalidRequest(f"cannot read the trace {path}: {error.strerror}") from error
    except KeyError as error:
        raise InvalidRequest(f"the trace {path} has no {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the trace {path} is invalid: {error}") from error
    if not requests:
        raise InvalidRequest(f"the trace {path} has no requests")
    for number, request in enumerate(requests, 1):
        if (problem := _problem(request)) is not None:
            raise InvalidRequest(f"the trace {path} is invalid: request {number}: {problem}")
    return sorted(requests, key=lambda request: request.at)


def _problem(request: Request) -> str | None:
    """Return a description of the first invalid field; None if the request is valid."""
    at: Any = request.at  # may have any JSON type
    lengths: tuple[Any, Any] = request.prompt_tokens, request.output_tokens
    if not isinstance(at, int | float) or not math.isfinite(at):
        return f"the timestamp is {at}, must be a number"
    if not all(isinstance(one, int) and 0 <= one <= _MOST_TOKENS for one in lengths):
        return (
            f"the lengths are {lengths[0]!r:.40} and {lengths[1]!r:.40}, must be whole numbers "
            f"from 0 to {_MOST_TOKENS:,}"
        )
    blocks: tuple[Any, ...] = request.blocks
    if not all(isinstance(one, int | str) for one in blocks):
        return "hash_ids must be numbers"
    return None


def sampled(requests: Sequence[Request], count: int, seed: int = 1) -> list[Request]:
    """Return about ``count`` requests: complete conversations, chosen at random.

    Requests with the same first two blocks form a conversation; nearly all share the first block.
    Prompts in the sample share prefixes to the same extent as those of the whole trace.
    """
    names = sorted({request.blocks[:2] for request in requests})
    rng = random.Random(seed)  # noqa: S311  no secret
    rng.shuffle(names)
    sizes = Counter(request.blocks[:2] for request in requests)
    chosen: set[tuple[int, ...]] = set()
    left = count
    for name in names:
        if sizes[name] <= left:
            chosen.add(name)
            left -= sizes[name]
    return [request for request in requests if request.blocks[:2] in chosen]


def generated_requests(count: int, *, talks: int = 24, seed: int = 1) -> list[Request]:
    """Generate interleaved conversations: each prompt contains all turns before it.

    Args:
        count: Number of requests.
        talks: Concurrent conversations.
        seed: Random seed; the same seed gives the same requests.
    """
    rng = random.Random(seed)  # noqa: S311  no secret
    fresh = iter(range(1, 10**9))
    shared = [next(fresh) for _ in range(2)]
    running: list[list[int]] = [[] for _ in range(talks)]
    requests: list[Request] = []
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(4.0)
        index = rng.randrange(talks)
        if not running[index] or len(running[index]) > 48:  # noqa: PLR2004  a new conversation begins
            running[index] = list(shared)
        running[index] += [next(fresh) for _ in range(rng.randint(2, 6))]
        blocks = tuple(running[index])
        requests.append(
            Request(
                at, _tokens_of(blocks, rng.randint(1, TRACE_BLOCK)), rng.randint(64, 512), blocks
            )
        )
    return requests


def cacheable_share(requests: Sequence[Request], block: int) -> float:
    """Return the share of prompt tokens that one cache of unlimited size would hold."""
    seen: set[tuple[int, ...]] = set()
    held = 0
    for request in requests:
        depth = 0
        # The last token of a prompt is always computed.
        whole = (request.prompt_tokens - 1) // block
        while depth < whole and request.blocks[: depth + 1] in seen:
            depth += 1
        held += depth * block
        full = request.prompt_tokens // block
        seen.update(request.blocks[:end] for end in range(1, full + 1))
    return held / max(sum(request.prompt_tokens for request in requests), 1)


def _tokens_of(blocks: Sequence[int], last: int) -> int:
    return (len(blocks) - 1) * TRACE_BLOCK + last
