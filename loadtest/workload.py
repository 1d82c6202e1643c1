"""What is asked: sessions of one or more turns, made up or from a trace. Pure."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.trace import Request

# Common English words of one or two tokens in most vocabularies.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea kid body information back "
    "parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education"
).split()


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a server counts the tokens of our texts: tokens = fixed + per_word * words."""

    per_word: float = 1.0
    fixed: float = 0.0
    """Tokens that every prompt has besides: the chat template."""

    def words(self, tokens: int) -> int:
        """Return how many words make a prompt of about ``tokens``; at least one."""
        return max(round((tokens - self.fixed) / self.per_word), 1)

    @classmethod
    def of(cls, short: tuple[int, int], long: tuple[int, int]) -> "Calibration":
        """Fit it to two prompts, each (words, tokens as the server counted)."""
        slope = (long[1] - short[1]) / (long[0] - short[0])
        if slope <= 0:
            return cls()
        return cls(slope, max(short[1] - slope * short[0], 0.0))


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and the longest answer."""

    text: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation: every turn is sent with all turns and answers before it."""

    number: int
    turns: tuple[Turn, ...]
    system: str = ""
    think: float = 0.0
    """Seconds between an answer's end and the next turn."""


@dataclass(frozen=True, slots=True)
class Range:
    """A whole number drawn evenly from ``low`` to ``high``."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """Draw one."""
        return rng.randint(self.low, self.high)


def text(key: str, words: int) -> str:
    """Return ``words`` words; equal keys give equal beginnings."""
    rng = random.Random(key)  # noqa: S311  no secret
    return " ".join(rng.choices(_WORDS, k=words))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Made-up sessions, each with a text of its own after a beginning that all share."""

    prompt: Range
    """Tokens of a turn, the shared beginning not counted."""
    output: Range
    turns: int = 1
    think: float = 0.0
    shared: int = 0
    """Tokens of the system message that all sessions share; 0: none."""
    lengths: str = ""
    """Seed of the lengths."""
    texts: str = ""
    """Seed of the texts: equal ones a prefix cache knows again."""

    def sessions(self, calibration: Calibration) -> Iterator[Session]:
        """Yield sessions without end."""
        rng = random.Random(self.lengths)  # noqa: S311  no secret
        words = max(round(self.shared / calibration.per_word), 1)
        system = text("shared", words) if self.shared else ""
        for number in itertools.count():
            turns = tuple(
                Turn(
                    text(
                        f"{self.texts}/{number}/{turn}",
                        calibration.words(self.prompt.draw(rng)),
                    ),
                    self.output.draw(rng),
                )
                for turn in range(self.turns)
            )
            yield Session(number, turns, system, self.think)


def from_trace(
    requests: Sequence[Request], calibration: Calibration, *, block: int, speed: float
) -> Iterator[tuple[float, Session]]:
    """Yield a trace's requests with when they are due, in seconds.

    Args:
        requests: in order of time, scaled to ``block`` already. Equal blocks give equal texts,
            so that a prefix cache sees what the traced server's saw.
        calibration: how the server counts.
        block: tokens of a block.
        speed: times as fast as the trace.

    """
    words = max(round(block / calibration.per_word), 1)
    start = requests[0].at if requests else 0.0
    for number, request in enumerate(requests):
        parts = []
        left = request.prompt_tokens
        for name in request.blocks:
            share = min(left, block) / block
            parts.append(text(f"block {name}", max(round(words * share), 1)))
            left -= block
            if left <= 0:
                break
        turn = Turn(" ".join(parts), request.output_tokens)
        yield (request.at - start) / speed, Session(number, (turn,))
