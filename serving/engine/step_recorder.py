"""Cached load figures of an engine; a load report never waits for the engine.

:class:`StepRecorder` receives vLLM's statistics after each step. :class:`ExpertRecorder` reads the
workers' expert counts in the background.
"""

import asyncio
import logging
from typing import Any

from typing_extensions import override
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from serving.clock import Clock
from serving.engine.core.client import CoreClient
from serving.link.v1 import link_pb2

_SMOOTHING = 0.1
"""Weight of the latest step in the moving average of the step duration."""

_EXPERT_INTERVAL = 1.0
"""Minimum interval between reads of the workers' counts, seconds. A read runs between steps."""

_EXPERT_TIMEOUT = 60.0
"""Timeout of a read, seconds."""

_log = logging.getLogger(__name__)


class StepRecorder(StatLoggerBase):
    """vLLM stat logger that keeps the latest figures; vLLM calls :meth:`record` after each step."""

    def __init__(self, clock: Clock) -> None:
        """Start without figures."""
        self._clock = clock
        self._last_step = clock.monotonic()
        self._busy = False
        self._load = link_pb2.LoadSnapshot()

    def factory(self, vllm_config: VllmConfig, engine_index: int = 0) -> "StepRecorder":
        """Return this recorder. vLLM creates stat loggers by calling a factory."""
        del vllm_config, engine_index
        return self

    @override
    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add the figures of one step."""
        del mm_cache_stats, engine_idx
        load = self._load
        if iteration_stats is not None:
            load.prompt_tokens_total += iteration_stats.prompt_token_stats.total
            load.generated_tokens_total += iteration_stats.num_generation_tokens
        if scheduler_stats is None:
            return
        now = self._clock.monotonic()
        if self._busy:
            # Measured only between consecutive steps, to exclude idle time.
            duration = now - self._last_step
            mean = load.step_seconds or duration
            load.step_seconds = mean + _SMOOTHING * (duration - mean)
            load.busy_seconds_total += duration
        self._last_step = now
        self._busy = scheduler_stats.num_running_reqs > 0
        load.engine_steps_total += 1
        load.running_requests = scheduler_stats.num_running_reqs
        load.waiting_requests = (
            scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        )
        load.kv_usage = scheduler_stats.kv_cache_usage
        drafted = scheduler_stats.spec_decoding_stats
        if drafted is not None:
            load.speculation.draft_steps += drafted.num_drafts
            load.speculation.proposed_tokens += drafted.num_draft_tokens
            load.speculation.accepted_tokens += drafted.num_accepted_tokens

    @override
    def log_engine_initialized(self) -> None:
        """Do nothing."""

    def since_last_step(self) -> float:
        """Return the seconds since the engine's last step, or since this recorder was created."""
        return self._clock.monotonic() - self._last_step

    def snapshot(self) -> link_pb2.LoadSnapshot:
        """Return a copy of the totals and the latest figures, with the time since the last step."""
        load = link_pb2.LoadSnapshot()
        load.CopyFrom(self._load)
        load.since_last_step_ms = int(self.since_last_step() * 1000)
        return load

    def reset(self) -> None:
        """Set the totals to zero; called after warm-up, which does not count as traffic."""
        self._load = link_pb2.LoadSnapshot()
        self._busy = False


class ExpertRecorder:
    """Experts held by the rank's workers, and the tokens that each expert has computed."""

    def __init__(self, core: CoreClient, clock: Clock) -> None:
        """Start without figures.

        Args:
            core: The engine whose workers are read.
            clock: Source of time.
        """
        self._core = core
        self._clock = clock
        self._read_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self.placement = link_pb2.ExpertPlacement()
        """Experts of this rank; empty for a model without experts."""
        self.loads: list[link_pb2.LayerExpertLoad] = []
        """Tokens by layer at the last read; empty if the workers do not count tokens."""

    def refresh(self) -> None:
        """Start a background read if the last one is at least ``_EXPERT_INTERVAL`` old."""
        idle = self._task is None or self._task.done()
        if idle and self._clock.monotonic() - self._read_at >= _EXPERT_INTERVAL:
            self._task = asyncio.create_task(self._refresh(), name="expert-recorder")

    async def update(self) -> None:
        """Read the workers' counts.

        Raises:
            TimeoutError: The workers did not answer within ``_EXPERT_TIMEOUT``.
            Exception: vLLM's error if the engine has failed.
        """
        self._read_at = self._clock.monotonic()
        async with asyncio.timeout(_EXPERT_TIMEOUT):
            workers = await self._core.collective_rpc("moe_serving_expert_load")
        # With tensor parallelism, each worker holds part of the rank's experts.
        layers: dict[str, dict[int, int | None]] = {}
        total = 0
        for worker in workers:
            for name, experts, local_ids, tokens in worker:
                total = experts
                counts = tokens or [None] * len(local_ids)
                layers.setdefault(name, {}).update(zip(local_ids, counts, strict=True))
        if not layers:
            return
        local_ids = sorted(next(iter(layers.values())))
        self.placement = link_pb2.ExpertPlacement(total=total, local_ids=local_ids)
        self.loads = [
            link_pb2.LayerExpertLoad(
                layer=name, tokens=[count or 0 for _, count in sorted(counts.items())]
            )
            for name, counts in layers.items()
            if None not in counts.values()
        ]

    async def stop(self) -> None:
        """Cancel a read that is in progress."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            await self.update()
        except Exception as error:  # noqa: BLE001  health is reported elsewhere; counts can wait
            _log.debug("no expert counts from the workers: %r", error)
