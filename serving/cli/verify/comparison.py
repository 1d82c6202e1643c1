"""What ``verify`` compares: answers of several layouts to the same prompts. Pure functions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which two answers part."""

    prompt: int
    """Index of the prompt."""
    position: int
    """Index of the token in the answer."""
    expected: int | None
    """Token id of the reference; ``None`` if its answer had ended."""
    got: int | None
    """Token id of the other; ``None`` if its answer had ended."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the answers of one layout stand to those of the reference."""

    layout: str
    prompts: int
    tokens: int
    """Tokens that the layout generated."""
    differing: int
    """Prompts whose answers are not the same."""
    first: Difference | None

    @property
    def equal(self) -> bool:
        """Whether every answer is the same, and there was something to compare."""
        return self.differing == 0 and self.prompts > 0 and self.tokens > 0


Answers = Sequence[Sequence[int]]
"""Token ids of the answer to each prompt."""


def compare(layout: str, reference: Answers, answers: Answers) -> Comparison:
    """Compare ``answers`` with ``reference``, token by token.

    A prompt that only one of them answered counts as different.
    """
    first: Difference | None = None
    differing = 0
    for prompt, (expected, got) in enumerate(zip_longest(reference, answers, fillvalue=())):
        difference = _first_difference(prompt, expected, got)
        if difference is not None:
            differing += 1
            first = first or difference
    return Comparison(
        layout=layout,
        prompts=max(len(reference), len(answers)),
        tokens=sum(map(len, answers)),
        differing=differing,
        first=first,
    )


def _first_difference(
    prompt: int, expected: Sequence[int], got: Sequence[int]
) -> Difference | None:
    for position, (left, right) in enumerate(zip_longest(expected, got)):
        if left != right:
            return Difference(prompt, position, left, right)
    return None


def table(comparisons: Sequence[Comparison], prompts: Sequence[str]) -> str:
    """Return the result as text: a line a layout, the first one being the reference."""
    rows = [("layout", "prompts", "tokens", "result", "first difference")]
    for index, item in enumerate(comparisons):
        result = "reference" if index == 0 else "equal" if item.equal else "DIFFERENT"
        if not item.equal and item.tokens == 0:
            result = "NO TOKENS"
        where = ""
        if item.first is not None:
            result = f"{item.differing} of {item.prompts} DIFFERENT"
            where = (
                f"prompt {item.first.prompt} ({_short(prompts[item.first.prompt])}), "
                f"token {item.first.position}: {_token(item.first.expected)} expected, "
                f"{_token(item.first.got)} came"
            )
        rows.append((item.layout, str(item.prompts), str(item.tokens), result, where))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(
            (*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4])
        ).rstrip()
        for row in rows
    )


def _token(token: int | None) -> str:
    return "the end" if token is None else str(token)


def _short(text: str, length: int = 32) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def make_prompts(count: int, seed: int) -> list[str]:
    """Return ``count`` prompts of very different lengths (one to eight questions each).

    Lengths matter: prompts of one length would hide mistakes in how ranks with unequal
    numbers of tokens exchange them.
    """
    rng = random.Random(seed)  # noqa: S311  reproducible test data
    return [" ".join(_question(rng) for _ in range(1 + index % 8)) for index in range(count)]


def _question(rng: random.Random) -> str:
    kind = rng.randrange(4)
    a, b = rng.randint(0, 999), rng.randint(0, 999)
    if kind == 0:
        return f"What is {a}+{b}?"
    if kind == 1:
        return f"Which is larger, {a} or {b}?"
    if kind == 2:  # noqa: PLR2004  one of four kinds
        return f"Sort {' '.join(str(rng.randint(0, 99)) for _ in range(rng.randint(2, 6)))}."
    letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    return f"Reverse the word {letters}."
