"""Methods of vLLM's ``EngineClient`` that apply only to a single engine."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from typing_extensions import override
from vllm.engine.protocol import EngineClient
from vllm.inputs import EngineInput, PromptType
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput
from vllm.pooling_params import PoolingParams

from serving.errors import ServingError, Unsupported
from serving.vllm_adapter.errors import as_vllm_error


class UnsupportedEngineApi(EngineClient):
    """Base class of ``FleetClient``: rejects or ignores operations on a single engine."""

    is_running = True
    """The client runs as long as the process."""
    is_stopped = False
    """See ``is_running``."""
    errored = False
    """The router handles lost ranks; vLLM must not stop the server for them."""

    @override
    def encode(
        self,
        prompt: PromptType | EngineInput,
        pooling_params: PoolingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        reasoning_ended: bool | None = None,
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """Reject the call, because the served models only generate text."""
        del prompt, pooling_params, request_id, lora_request, trace_headers, priority
        del tokenization_kwargs, reasoning_ended
        raise as_vllm_error(Unsupported("this model only generates text; use an embedding model"))

    @override
    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Do nothing, because a request is aborted by closing its generator."""

    @override
    async def notify_kv_transfer_request_rejected(
        self,
        request_id: str,
        kv_transfer_params: dict[str, Any],
        *,
        data_parallel_rank: int | None = None,
    ) -> None:
        """Do nothing, because no KV transfer is configured in the router."""

    @override
    async def is_tracing_enabled(self) -> bool:
        """Return False, because the router handles tracing."""
        return False

    @override
    async def do_log_stats(self) -> None:
        """Do nothing, because the router has its own metrics."""

    @override
    async def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Reject the call, because a rank is profiled on its node."""
        del profile_prefix, delay_iterations, max_iterations
        raise _engine_only("start_profile")

    @override
    async def stop_profile(self) -> None:
        """Reject the call; see ``start_profile``."""
        raise _engine_only("stop_profile")

    @override
    async def reset_mm_cache(self) -> None:
        """Do nothing, because there is no multi-modal cache."""

    @override
    async def reset_encoder_cache(self) -> None:
        """Do nothing, because there is no encoder cache."""

    @override
    async def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,
        reset_connector: bool = False,
    ) -> bool:
        """Reject the call, because caches belong to the ranks."""
        del reset_running_requests, reset_connector
        raise _engine_only("reset_prefix_cache")

    @override
    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Reject the call, because groups are scaled instead."""
        del level, mode
        raise _engine_only("sleep")

    @override
    async def release_kv_cache_memory(self) -> None:
        """Reject the call, because caches belong to the ranks."""
        raise _engine_only("release_kv_cache_memory")

    @override
    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Reject the call; see ``sleep``."""
        del tags
        raise _engine_only("wake_up")

    @override
    async def is_sleeping(self) -> bool:
        """Return False."""
        return False

    @override
    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Reject the call, because LoRA adapters are not supported."""
        del lora_request
        raise _engine_only("add_lora")

    @override
    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        """Reject the call, because groups are drained instead."""
        del mode, clear_cache
        raise _engine_only("pause_generation")

    @override
    async def resume_generation(self) -> None:
        """Reject the call; see ``pause_generation``."""
        raise _engine_only("resume_generation")

    @override
    async def is_paused(self) -> bool:
        """Return False."""
        return False


def _engine_only(name: str) -> ServingError:
    return as_vllm_error(
        Unsupported(f"{name} applies to a single engine and is not supported by the router")
    )
