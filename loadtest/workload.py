"""The requests of a run: sessions of one or more turns, generated or from a trace. Pure."""

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
    """Token counts of a server for our texts: tokens = fixed + per_word * words."""

    per_word: float = 1.0
    fixed: float = 0.0
    """Tokens that the chat template adds to every prompt."""

    def words(self, tokens: int) -> int:
        """Return the number of words for a prompt of about ``tokens`` tokens; at least one."""
        return max(round((tokens - self.fixed) / self.per_word), 1)

    @classmethod
    def of(cls, short: tuple[int, int], long: tuple[int, int]) -> "Calibration":
        """Return the calibration from two prompts, each (words, tokens counted by the server)."""
        slope = (long[1] - short[1]) / (long[0] - short[0])
        if slope <= 0:
            return cls()
        return cls(slope, max(short[1] - slope * short[0], 0.0))


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message, and the maximum length of its answer."""

    text: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation: each turn is sent with all turns and answers before it."""

    number: int
    turns: tuple[Turn, ...]
    system: str = ""
    think: float = 0.0
    """Pause between an answer and the next turn, seconds."""


@dataclass(frozen=True, slots=True)
class Range:
    """A whole number that is uniformly distributed from ``low`` to ``high``."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """Return a random number from the range."""
        return rng.randint(self.low, self.high)


def text(key: str, words: int) -> str:
    """Return ``words`` words; texts with equal keys have equal prefixes."""
    rng = random.Random(key)  # noqa: S311  no secret
    return " ".join(rng.choices(_WORDS, k=words))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Generated sessions with different texts after an optional shared prefix."""

    prompt: Range
    """Number of tokens of a turn, without the shared prefix."""
    output: Range
    turns: int = 1
    think: float = 0.0
    shared: int = 0
    """Number of tokens of the system message that all sessions share; 0: no system message."""
    lengths: str = ""
    """Seed of the lengths."""
    texts: str = ""
    """Seed of the texts; runs with equal seeds hit the prefix cache of earlier runs."""

    def sessions(self, calibration: Calibration) -> Iterator[Session]:
        """Yield an endless series of sessions."""
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
    """Yield the requests of a trace as (start time in seconds, session).

    Args:
        requests: Requests in order of time, scaled to ``block``. Equal blocks have equal texts, so
            a prefix cache works as it did on the traced server.
        calibration: Token counts of the server.
        block: Tokens of a block.
        speed: Speed relative to the trace's timestamps.
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
