"""A group of vLLM ranks without a router, one process per rank, to measure the engine."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.bench.engine_rank import READY, TOKENS, Round
from serving.net import HeldPort

_STOP = 30.0


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Running ranks that share the experts."""

    ranks: list[subprocess.Popen[str]]

    def run(self, streams: int, tokens: int, seed: int = 0) -> tuple[float, str]:
        """Run one round on all ranks at the same time.

        Args:
            streams: Number of streams of the whole group, spread evenly over the ranks.
            tokens: Tokens per stream.
            seed: Seed for the prompts.

        Returns:
            Generated tokens per second, from the start of the round to its last token, and a
            digest of all tokens.

        Raises:
            RuntimeError: A rank has ended, or generated a different number of tokens.
        """
        share = streams // len(self.ranks)
        started = time.monotonic()
        for number, rank in enumerate(self.ranks):
            load = Round(share, tokens, seed * len(self.ranks) + number)
            assert rank.stdin is not None
            print(json.dumps(asdict(load)), file=rank.stdin, flush=True)
        answers = [_answer(rank, TOKENS).split() for rank in self.ranks]
        elapsed = time.monotonic() - started
        generated = sum(int(count) for count, _ in answers)
        if generated != share * tokens * len(self.ranks):
            raise RuntimeError(f"{generated} tokens of {streams} streams of {tokens}: some failed")
        return generated / elapsed, "".join(digest for _, digest in answers)


@contextlib.contextmanager
def engine_group(
    folder: Path,
    ranks: int,
    engine: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> Iterator[EngineGroup]:
    """Start a group and wait until all ranks have generated a token.

    Args:
        folder: Directory for settings and logs; one per group.
        ranks: Number of ranks.
        engine: Settings under ``engine`` that differ from the defaults.
        environment: Additional environment variables.

    Raises:
        RuntimeError: A rank did not start.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "group.yaml"
    file.write_text(
        yaml.safe_dump({"group": {"data_parallel": ranks}, "engine": dict(engine)}), "utf-8"
    )
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(HeldPort()).port
        processes = [
            stack.enter_context(
                _rank([str(file), str(rank), str(port)], folder / f"rank-{rank}.log", environment)
            )
            for rank in range(ranks)
        ]
        for rank in processes:
            _answer(rank, READY)
        yield EngineGroup(processes)


@contextlib.contextmanager
def _rank(
    words: list[str], log: Path, environment: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[str]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.engine_rank", *words],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(rank: subprocess.Popen[str], word: str) -> str:
    """Return the rest of the next line that begins with ``word``; vLLM also writes to stdout."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise RuntimeError(f"rank process {rank.pid} ended")
