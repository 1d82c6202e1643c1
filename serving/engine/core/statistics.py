"""vLLM's statistics of an engine, recorded as ``AsyncLLM`` does: Prometheus metrics and traces."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.loggers import (
    StatLoggerFactory,
    StatLoggerManager,
    load_stat_logger_plugin_factories,
)
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from serving.engine.core.client import CoreClient


class RequestStatistics:
    """vLLM's statistics of one request to the engine core."""

    __slots__ = ("cached_tokens", "parent", "prefilling", "request", "state")

    def __init__(self, request: EngineCoreRequest, parent: ParentRequest | None) -> None:
        """Start with the request's arrival.

        Args:
            request: The request; its sampling parameters are set.
            parent: vLLM's record of a request with several choices. None for one choice.
        """
        params = request.sampling_params
        assert params is not None
        self.request = request
        self.parent = parent
        self.state = RequestStateStats(arrival_time=request.arrival_time)
        self.state.is_watermarked = bool(params.watermarking)
        self.state.is_watermark_skipped = params._watermarking_skipped  # noqa: SLF001
        self.prefilling = True
        self.cached_tokens = 0


class StepStatistics:
    """Collects the statistics of a step, and records them in vLLM's stat loggers."""

    def __init__(self, core: CoreClient, loggers: Iterable[StatLoggerFactory]) -> None:
        """Create vLLM's Prometheus metrics and additional loggers.

        Args:
            core: The engine.
            loggers: Factories of the additional stat loggers.
        """
        self._traces = core.traces
        self._lora = LoRARequestStates(log_stats=True)
        self._manager = StatLoggerManager(
            core.vllm_config,
            engine_idxs=core.engine_indexes,
            custom_stat_loggers=[*loggers, *load_stat_logger_plugin_factories()],
            enable_default_loggers=False,
        )
        self._manager.log_engine_initialized()
        self._step: IterationStats | None = None
        self._ended: IterationStats | None = None
        """Requests that ended between two steps; recorded with the next step."""

    def begin(self) -> IterationStats:
        """Begin a step with outputs."""
        self._step, self._ended = self._ended or IterationStats(), None
        return self._step

    def finished(
        self, one: RequestStatistics, reason: FinishReason, output: EngineCoreOutput | None
    ) -> None:
        """Record the end of a request.

        Args:
            one: The request's statistics.
            reason: Why it ended.
            output: Its last output. None if the router ended it between two steps.
        """
        step = self._step
        if step is None:
            step = self._ended = self._ended or IterationStats()
        request, params = one.request, one.request.sampling_params
        assert params is not None
        prompt = request.prompt_token_ids or ()
        step.update_from_finished_request(
            finish_reason=reason,
            request_id=request.external_req_id or request.request_id,
            num_prompt_tokens=len(prompt),
            max_tokens_param=params.max_tokens,
            req_stats=one.state,
            num_cached_tokens=one.cached_tokens,
        )
        if one.parent is not None:
            one.parent.child_requests.discard(request.request_id)
        ParentRequest.observe_finished_request(one.parent, step, one.state.num_generation_tokens)
        if self._traces and output is not None:
            traced: Any = SimpleNamespace(
                stats=one.state,
                prompt_token_ids=request.prompt_token_ids,
                prompt_embeds=None,
                external_req_id=request.external_req_id,
                top_p=params.top_p,
                n=params.n,
                temperature=params.temperature,
                max_tokens_param=params.max_tokens,
            )
            # The method uses no state of the output processor.
            OutputProcessor.do_tracing(None, output, traced, step)

    def count(
        self, step: IterationStats, one: RequestStatistics, output: EngineCoreOutput, at: float
    ) -> None:
        """Add one request's output in a step; ``at`` is the step's time in the engine."""
        step.update_from_output(output, at, one.prefilling, one.state, self._lora, None)
        if one.prefilling:
            one.prefilling = False
            if output.prefill_stats is not None:
                one.cached_tokens = output.prefill_stats.num_cached_tokens

    def end(self, outputs: EngineCoreOutputs) -> None:
        """Record the step in the stat loggers."""
        step, self._step = self._step, None
        self._manager.record(
            engine_idx=outputs.engine_index,
            scheduler_stats=outputs.scheduler_stats,
            iteration_stats=step,
        )
