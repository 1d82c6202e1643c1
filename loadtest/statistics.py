"""Statistics of records: quantiles, throughput, goodput, and confidence intervals."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.record import Record
from loadtest.slo import Slo, attainment

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles and mean, seconds; NaN without values."""

    p50: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        """Return the quantiles and the mean of values."""
        if not values:
            return cls(*[float("nan")] * 4)
        p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
        return cls(float(p50), float(p90), float(p99), float(np.mean(values)))


@dataclass(frozen=True, slots=True)
class Summary:
    """The measured requests of a stage."""

    requests: int
    ok: int
    errors: Counter[str]
    seconds: float
    busy: float
    """Seconds from when the first measured request was due to the end of the last answer."""
    tokens: int
    """Output tokens of all complete answers, as counted by the server."""
    offered: float
    """Rate of requests that were due, requests/s."""
    completed: float
    """Rate of completed requests, requests/s."""
    output_tokens: float
    """Output tokens/s: output tokens of all complete answers divided by ``busy``, as vLLM's bench
    client computes its output throughput."""
    prompt_tokens: float
    """Prompt tokens/s."""
    cached: float
    """Share of prompt tokens that were cached."""
    ttft: Quantiles
    itl: Quantiles
    """Mean time between tokens of each request: TPOT in vLLM's bench client, ITL in guidellm."""
    gap: Quantiles
    """Times between chunks, over all requests: ITL in vLLM's bench client."""
    latency: Quantiles
    lateness: Quantiles
    """Delay of the generator, from due to sent. If it is large, the generator is too slow."""
    attained: float | None
    """Share of requests that met all limits."""
    goodput: float
    """Rate of requests that met all limits, requests/s."""

    @property
    def failed(self) -> int:
        """Number of failed requests, excluding those cancelled at the end of the run."""
        return self.errors.total() - self.errors["cancelled"]


def summarize(records: Sequence[Record], slo: Slo, seconds: float) -> Summary:
    """Return a summary of the measured requests, which were due within ``seconds``."""
    measured = [record for record in records if record.phase == "measure"]
    done = [record for record in measured if record.ok]
    seconds = max(seconds, 1e-9)
    # Duration as other clients define it: from the first request to the end of the last
    # answer, regardless of when the load ended.
    busy = 1e-9
    if measured:
        busy = max(
            max(record.end for record in measured) - min(record.intended for record in measured),
            busy,
        )
    prompt = sum(record.prompt_tokens for record in done)
    return Summary(
        requests=len(measured),
        ok=len(done),
        errors=Counter(record.error for record in measured if record.error),
        seconds=seconds,
        busy=busy,
        tokens=(tokens := sum(record.output_tokens for record in done)),
        offered=len(measured) / seconds,
        completed=len(done) / busy,
        output_tokens=tokens / busy,
        prompt_tokens=prompt / busy,
        cached=sum(record.cached_tokens for record in done) / max(prompt, 1),
        ttft=Quantiles.of([record.ttft for record in done if record.ttft is not None]),
        itl=Quantiles.of([record.itl for record in done if record.itl is not None]),
        gap=Quantiles.of([gap / 1000 for record in done for gap in record.gaps_ms]),
        latency=Quantiles.of([record.latency for record in done]),
        lateness=Quantiles.of([record.sent - record.intended for record in measured]),
        attained=attainment(measured, slo),
        goodput=sum(slo.met_by(record) for record in measured) / busy,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """B compared with A in one statistic, with a 95 % confidence interval."""

    name: str
    a: float
    b: float
    ratio: float
    """B divided by A."""
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes "no difference"."""
        return not self.low <= 1 <= self.high


def bootstrap_ratio(
    name: str,
    a: Sequence[float],
    b: Sequence[float],
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Return the ratio of a statistic with its percentile bootstrap interval.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. The method treats
    requests as independent, which holds only approximately under load.

    Args:
        name: Name of the statistic.
        a: Values of A, one for each request.
        b: Values of B, one for each request.
        statistic: Maps an array ``[resamples, values]`` to one number for each row.
        resamples: Number of resamples.
        seed: Random seed; the same seed gives the same interval.

    Returns:
        The difference; None if A or B is empty, or A's statistic is 0.
    """
    if not a or not b:
        return None
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    value_a, value_b = float(statistic(first[None])[0]), float(statistic(second[None])[0])
    if value_a == 0:
        return None
    rng = np.random.default_rng(seed)
    ratios: list[Floats] = []
    for _ in range(resamples // 50):  # in batches: long runs would fill the memory
        draws_a = first[rng.integers(0, len(first), (50, len(first)))]
        draws_b = second[rng.integers(0, len(second), (50, len(second)))]
        below = statistic(draws_a)
        ratios.append(statistic(draws_b) / np.where(below == 0, np.nan, below))
    low, high = np.nanquantile(np.concatenate(ratios), (0.025, 0.975))
    return Difference(name, value_a, value_b, value_b / value_a, float(low), float(high))


def compare(a: Sequence[Record], b: Sequence[Record]) -> list[Difference]:
    """Return the differences between the measured requests of two runs."""
    columns: list[tuple[str, Callable[[Record], float | None]]] = [
        ("TTFT", lambda record: record.ttft),
        ("ITL", lambda record: record.itl),
        ("latency", lambda record: record.latency),
    ]
    done_a, done_b = ([r for r in run if r.ok and r.phase == "measure"] for run in (a, b))
    found: list[Difference | None] = []
    for name, value in columns:
        values_a = [number for record in done_a if (number := value(record)) is not None]
        values_b = [number for record in done_b if (number := value(record)) is not None]
        for label, statistic in _STATISTICS:
            found.append(bootstrap_ratio(f"{name} {label}", values_a, values_b, statistic))
    fine_a, fine_b = (
        [float(r.ok) for r in run if r.phase == "measure" and r.error != "cancelled"]
        for run in (a, b)
    )
    found.append(bootstrap_ratio("success rate", fine_a, fine_b, _mean))
    return [difference for difference in found if difference is not None]


def _mean(rows: Floats) -> Floats:
    return np.asarray(rows.mean(axis=1), dtype=np.float64)


def _quantile(share: float) -> Callable[[Floats], Floats]:
    def of(rows: Floats) -> Floats:
        return np.asarray(np.quantile(rows, share, axis=1), dtype=np.float64)

    return of


_STATISTICS: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (
    ("mean", _mean),
    ("p50", _quantile(0.5)),
    ("p99", _quantile(0.99)),
)
