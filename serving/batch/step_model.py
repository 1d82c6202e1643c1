"""Duration of a group's engine steps, fitted to the reports of its ranks. Pure.

``seconds = fixed + sequence * sequences + token * prompt tokens``, by least squares with weights
that decay exponentially, so that the fit follows changes of prompts and hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from serving.routing.snapshot import RankLoad

_DECAY = 0.98
"""Weight of a report relative to the next one; reports come twice per second."""
_MIN_SPREAD = 1.0
"""Variance of the number of sequences below which their cost is not computed again."""
_MIN_DETERMINANT = 0.01
"""Determinant of the correlations below which the cost of prompt tokens is not computed."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """Means over the steps between two reports of a group."""

    seconds: float
    """Duration of a step."""
    sequences: float
    """Sequences in a step, on the rank with the most."""
    prompt_tokens: float
    """Prompt tokens computed in a step, on the rank with the most."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients of the duration of a step, seconds."""

    fixed: float
    sequence: float
    token: float

    def seconds(self, sequences: float) -> float:
        """Return the duration of a step that computes no prompt, seconds."""
        return self.fixed + self.sequence * sequences

    def alone(self, others: float, total: float) -> float:
        """Return how many of ``total`` sequences there would be if only the others ran.

        Requests arrive and end at the same rate with shorter steps, so that fewer run at a time:
        ``others / seconds(total) = alone / seconds(alone)``.

        Args:
            others: Sequences of other requests.
            total: All sequences, including those of lines.
        """
        seconds = self.seconds(total)
        left = seconds - self.sequence * others
        if left <= 0.0:
            return others
        return min(others * self.fixed / left, others) if self.fixed else others

    def sequences_within(self, seconds: float) -> float:
        """Return the number of sequences with which a step takes ``seconds``; can be infinite."""
        if self.sequence <= 0.0:
            return inf if self.fixed <= seconds else 0.0
        return max((seconds - self.fixed) / self.sequence, 0.0)


@dataclass(frozen=True, slots=True)
class StepModel:
    """Decaying sums over the samples of a group: n sequences, p prompt tokens, t seconds."""

    weight: float = 0.0
    n: float = 0.0
    p: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    pp: float = 0.0
    np: float = 0.0
    nt: float = 0.0
    pt: float = 0.0

    cost: tuple[float, float] | None = None
    """Cost of a sequence and of a prompt token when the samples last told them apart, seconds."""

    def after(self, sample: StepSample) -> "StepModel":
        """Return the model with one more sample."""
        n, p, t = sample.sequences, sample.prompt_tokens, sample.seconds
        new = (1.0, n, p, t, n * n, p * p, n * p, n * t, p * t)
        old = (self.weight, self.n, self.p, self.t, self.nn, self.pp, self.np, self.nt, self.pt)
        sums = (_DECAY * was + more for was, more in zip(old, new, strict=True))
        weight, n, p, t, nn, pp, np, nt, pt = sums
        model = StepModel(weight, n, p, t, nn, pp, np, nt, pt, self.cost)
        return replace(model, cost=model._fitted() or self.cost)

    @property
    def times(self) -> StepTime | None:
        """The coefficients. None: nothing is known.

        While the samples have never told the fixed part from that of the sequences, the whole
        duration is ascribed to the sequences, which overestimates the cost of another one.
        """
        if not self.weight or not self.n:
            return None
        n, p, t = self.n / self.weight, self.p / self.weight, self.t / self.weight
        sequence, token = self.cost or (t / n, 0.0)
        token = min(token, t / p) if p else 0.0
        sequence = min(sequence, max(t - token * p, 0.0) / n)
        return StepTime(max(t - sequence * n - token * p, 0.0), sequence, token)

    def _fitted(self) -> tuple[float, float] | None:
        """Return the cost of a sequence and of a prompt token; None if they cannot be separated."""
        n, p, t = self.n / self.weight, self.p / self.weight, self.t / self.weight
        nn, pp = self.nn / self.weight - n * n, self.pp / self.weight - p * p
        np = self.np / self.weight - n * p
        nt, pt = self.nt / self.weight - n * t, self.pt / self.weight - p * t
        if nn < _MIN_SPREAD:
            return None
        determinant = nn * pp - np * np
        token = 0.0
        if determinant > _MIN_DETERMINANT * nn * pp > 0.0:
            token = max((nn * pt - np * nt) / determinant, 0.0)
        return max((nt - token * np) / nn, 0.0), token


UNKNOWN = StepModel()
"""The model of a group without samples."""


def sample_between(before: Sequence[RankLoad], after: Sequence[RankLoad]) -> StepSample | None:
    """Return the sample of the steps between two reports of the ranks of a group.

    A sequence gets one token per step, plus the drafted tokens that were accepted.

    Returns:
        None if no rank completed a step with a sequence, or an engine started again.
    """
    found: list[StepSample] = []
    for old, new in zip(before, after, strict=True):
        steps = new.engine_steps_total - old.engine_steps_total
        accepted = new.mtp_accepted_tokens - old.mtp_accepted_tokens
        tokens = new.generated_tokens_total - old.generated_tokens_total - accepted
        seconds = new.busy_seconds_total - old.busy_seconds_total
        prompt = new.prompt_tokens_total - old.prompt_tokens_total
        if steps < 0 or tokens < 0 or seconds < 0:
            return None
        if steps and tokens and seconds:
            found.append(StepSample(seconds / steps, tokens / steps, max(prompt, 0) / steps))
    if not found:
        return None
    return StepSample(
        max(each.seconds for each in found),
        max(each.sequences for each in found),
        max(each.prompt_tokens for each in found),
    )
