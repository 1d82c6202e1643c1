"""What vLLM reports after each step, kept so that load can be told without asking it."""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from serving.clock import Clock
from serving.link.v1 import link_pb2

_SMOOTHING = 0.1
"""Weight of the newest step in the mean step duration."""


class StepRecorder(StatLoggerBase):
    """A vLLM stat logger that only remembers; vLLM calls :meth:`record` after each step."""

    def __init__(self, clock: Clock) -> None:
        """Start with nothing recorded."""
        self._clock = clock
        self._last_step = clock.monotonic()
        self._busy = False
        self._load = link_pb2.LoadSnapshot()

    def factory(self, vllm_config: VllmConfig, engine_index: int = 0) -> "StepRecorder":
        """Return this recorder; vLLM makes its loggers itself and takes a factory."""
        del vllm_config, engine_index
        return self

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take in one step."""
        del mm_cache_stats, engine_idx
        load = self._load
        if iteration_stats is not None:
            load.prompt_tokens_total += iteration_stats.prompt_token_stats.total
            load.generated_tokens_total += iteration_stats.num_generation_tokens
        if scheduler_stats is None:
            return
        now = self._clock.monotonic()
        if self._busy:
            # Only steps that follow one another: the wait for work is not a step.
            took = now - self._last_step
            mean = load.step_seconds or took
            load.step_seconds = mean + _SMOOTHING * (took - mean)
            load.busy_seconds_total += took
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

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def since_last_step(self) -> float:
        """Return the seconds since the engine's last step, or since the start."""
        return self._clock.monotonic() - self._last_step

    def snapshot(self) -> link_pb2.LoadSnapshot:
        """Return a copy of the totals and the latest figures."""
        load = link_pb2.LoadSnapshot()
        load.CopyFrom(self._load)
        load.since_last_step_ms = int(self.since_last_step() * 1000)
        return load

    def reset(self) -> None:
        """Forget the totals, so that warm-up does not count as traffic."""
        self._load = link_pb2.LoadSnapshot()
        self._busy = False
