"""Totals of the fleet over the last hour, sampled whether or not a console is open."""

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from serving.clock import Clock
from serving.console.hub import Parts
from serving.routing.snapshot import FleetSnapshot, MemberState
from serving.telemetry.metrics import ADMISSION_PREDICTED_WAIT, ADMISSION_WAIT_ERROR

PERIOD = 10.0
"""Seconds between two samples."""
SAMPLES = 360
"""Samples that are kept: one hour."""
_encode = msgspec.json.Encoder().encode


class Timeline:
    """The samples, and the part ``timeline``."""

    def __init__(
        self, fleet: Callable[[], FleetSnapshot], inflight: Callable[[], int], clock: Clock
    ) -> None:
        """Start without samples.

        Args:
            fleet: Returns the current snapshot.
            inflight: Returns the number of requests in the router, waiting ones included.
            clock: Time of the samples.
        """
        self._fleet = fleet
        self._inflight = inflight
        self._clock = clock
        self._waits = _waits()
        self._samples: deque[tuple[float | int | None, ...]] = deque(maxlen=SAMPLES)
        self._tokens: int | None = None
        self._at = 0.0

    def __call__(self) -> Parts:
        """Return the samples as JSON, oldest first.

        A row is: Unix time in seconds, groups, ready groups, requests in this router, requests on
        ranks (of all routers), waiting in engines, KV use in 1/1000 (mean of the ranks of ready
        groups), generated tokens/s; mean predicted and mean actual wait of the requests that waited
        for a rank and were placed since the last sample, milliseconds (null: none was).
        """
        return {"timeline": _encode({"period": PERIOD, "rows": list(self._samples)})}

    def sample(self) -> None:
        """Add a sample."""
        snapshot, now = self._fleet(), self._clock.monotonic()
        ranks = [rank for group in snapshot.groups for rank in group.ranks]
        ready = [group for group in snapshot.groups if group.state is MemberState.READY]
        used = [rank.load.kv_usage for group in ready for rank in group.ranks]
        tokens = sum(rank.load.generated_tokens_total for rank in ranks)
        # A rank that left takes its tokens with it, so the sum may fall.
        new = max(tokens - (tokens if self._tokens is None else self._tokens), 0)
        rate = new / max(now - self._at, 1e-3)
        self._tokens, self._at = tokens, now
        before, self._waits = self._waits, _waits()
        waited, predicted, error = (
            after - earlier for after, earlier in zip(self._waits, before, strict=True)
        )
        means = (predicted / waited, (predicted + error) / waited) if waited else (None, None)
        self._samples.append(
            (
                round(self._clock.time()),
                len(snapshot.groups),
                len(ready),
                self._inflight(),
                sum(rank.load.running_requests for rank in ranks),
                sum(rank.load.waiting_requests for rank in ranks),
                round(1000 * sum(used) / len(used)) if used else 0,
                round(rate),
                *(None if mean is None else round(1000 * mean) for mean in means),
            )
        )

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(PERIOD)


def _waits() -> tuple[float, float, float]:
    """Return the number of requests that waited, and sums of predicted waits and their errors."""
    samples = [sample for family in ADMISSION_PREDICTED_WAIT.collect() for sample in family.samples]
    values = {sample.name: sample.value for sample in samples if not sample.labels}
    name = "moe_admission_predicted_wait_seconds"
    # prometheus_client does not export the sum of a histogram with negative buckets.
    error = ADMISSION_WAIT_ERROR._sum.get()  # noqa: SLF001
    return values[f"{name}_count"], values[f"{name}_sum"], error
