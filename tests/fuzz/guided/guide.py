"""A small coverage-guided fuzzer in plain Python, used if atheris is not installed.

An input that executes a pair of consecutive lines that no earlier input has executed is added to
the corpus and mutated further. The same seed gives the same inputs if the code under test is
deterministic.
"""

import random
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_MOST = 6000
"""Maximum length of an input, bytes."""


class Edges:
    """Pairs of lines executed consecutively in a function, in some packages."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._parts = tuple(f"/{package.replace('.', '/')}" for package in packages)
        self._wanted: dict[CodeType, bool] = {}
        self.seen: set[tuple[CodeType, int, int]] = set()
        self.fresh = 0

    def __call__(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        wanted = self._wanted.get(code)
        if wanted is None:
            wanted = any(part in code.co_filename for part in self._parts)
            self._wanted[code] = wanted
        if not wanted:
            return None
        before = code.co_firstlineno

        def line(inside: FrameType, _event: str, _argument: Any) -> Any:
            nonlocal before
            edge = (code, before, inside.f_lineno)
            if edge not in self.seen:
                self.seen.add(edge)
                self.fresh += 1
            before = inside.f_lineno
            return line

        return line


def fuzz(runner: Any, seed: int, go_on: Callable[[], bool]) -> tuple[int, int]:
    """Fuzz while ``go_on()``; returns the edges seen and the size of the corpus."""
    rng = random.Random(seed)
    target = runner.target
    edges = Edges(target.packages)
    corpus: list[bytes] = []

    def tried(data: bytes) -> None:
        edges.fresh = 0
        sys.settrace(edges)
        try:
            runner.keep(data)
        finally:
            sys.settrace(None)
        if edges.fresh:
            corpus.append(data)

    for data in target.seeds():
        tried(data)
    while go_on():
        # The latest findings have been tried least.
        data = rng.choice(corpus[-30:] if rng.random() < 0.5 else corpus)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = target.mutate(rng, data)
        tried(data[:_MOST])
    return len(edges.seen), len(corpus)
