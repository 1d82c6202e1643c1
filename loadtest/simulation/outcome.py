"""What a run came to, counted request by request."""

from array import array
from dataclasses import dataclass, field

from loadtest.simulation.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep to count as good, in seconds."""

    ttft: float
    itl: float
    """Of its mean from token to token."""


@dataclass(slots=True)
class Outcome:
    """What became of a run. Counts are those of the model; ``sample`` says what they stand for."""

    sample: int
    seconds: float
    """Over which requests came."""
    requests: int = 0
    refused: int = 0
    resumed: int = 0
    good: int = 0
    ttft_met: int = 0
    itl_met: int = 0
    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    itl: "array[float]" = field(default_factory=lambda: array("d"))
    latency: "array[float]" = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    group_seconds: float = 0.0
    """Of the whole fleet that is meant, from asking for a group to its end."""
    busy_seconds: float = 0.0
    """Of the model's groups, in steps, while requests came."""
    least: int = 0
    most: int = 0
    """Groups asked for, of the whole fleet."""
    changes: int = 0
    ended_at: float = 0.0
    picks: int = 0

    def count(self, sequence: Sequence, now: float, objective: Objective) -> None:
        """Take in a request that was answered.

        Args:
            sequence: it has ended.
            now: when.
            objective: that it has to keep to be good.
        """
        assert sequence.first_at is not None
        ttft = sequence.first_at - sequence.at + sequence.overhead
        self.ttft.append(ttft)
        self.latency.append(now - sequence.at + sequence.overhead)
        itl = sequence.itl
        if itl is not None:
            self.itl.append(itl)
        fast = ttft <= objective.ttft
        smooth = itl is None or itl <= objective.itl
        self.ttft_met += fast
        self.itl_met += smooth
        self.good += fast and smooth
        self.prompt_tokens += sequence.asked_tokens
        self.cached_tokens += sequence.cached
        self.output_tokens += sequence.output_tokens
