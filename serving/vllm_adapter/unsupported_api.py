"""What vLLM may ask an engine of its own, and a fleet refuses or has no use for."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from typing_extensions import override
from vllm.engine.protocol import EngineClient
from vllm.inputs import EngineInput, PromptType
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput
from vllm.pooling_params import PoolingParams

from serving.errors import ServingError, Unsupported
from serving.vllm_adapter.errors import visible


class NoEngine(EngineClient):
    """The part of an ``EngineClient`` that is about one engine, answered for a fleet.

    ``FleetClient`` is what it can do.
    """

    @property
    @override
    def is_running(self) -> bool:
        """The client itself runs as long as its process."""
        return True

    @property
    @override
    def is_stopped(self) -> bool:
        """See ``is_running``."""
        return False

    @property
    @override
    def errored(self) -> bool:
        """Never: losing ranks is for the roster to mend, not for vLLM to stop the server."""
        return False

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
        """Refuse: the served models generate text."""
        del prompt, pooling_params, request_id, lora_request, trace_headers, priority
        del tokenization_kwargs, reasoning_ended
        raise visible(Unsupported("this model generates text; it has no embeddings"))

    @override
    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Do nothing: a request is aborted by closing its generator."""

    @override
    async def notify_kv_transfer_request_rejected(
        self,
        request_id: str,
        kv_transfer_params: dict[str, Any],
        *,
        data_parallel_rank: int | None = None,
    ) -> None:
        """Do nothing: no KV transfer is configured in the router."""

    @override
    async def is_tracing_enabled(self) -> bool:
        """Whether trace headers are of use; the rank decides."""
        return False

    @override
    async def do_log_stats(self) -> None:
        """Do nothing: the router's metrics are its own."""

    @override
    async def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Refuse: profile a rank where it runs."""
        del profile_prefix, delay_iterations, max_iterations
        raise _engine_only("start_profile")

    @override
    async def stop_profile(self) -> None:
        """Refuse, as ``start_profile``."""
        raise _engine_only("stop_profile")

    @override
    async def reset_mm_cache(self) -> None:
        """Do nothing: there is no multi-modal cache."""

    @override
    async def reset_encoder_cache(self) -> None:
        """Do nothing: there is no encoder cache."""

    @override
    async def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,
        reset_connector: bool = False,
    ) -> bool:
        """Refuse: caches belong to the ranks."""
        del reset_running_requests, reset_connector
        raise _engine_only("reset_prefix_cache")

    @override
    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Refuse: scale the group instead."""
        del level, mode
        raise _engine_only("sleep")

    @override
    async def release_kv_cache_memory(self) -> None:
        """Refuse: caches belong to the ranks."""
        raise _engine_only("release_kv_cache_memory")

    @override
    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Refuse, as ``sleep``."""
        del tags
        raise _engine_only("wake_up")

    @override
    async def is_sleeping(self) -> bool:
        """Never."""
        return False

    @override
    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Refuse: adapters are not served."""
        del lora_request
        raise _engine_only("add_lora")

    @override
    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        """Refuse: drain the group instead."""
        del mode, clear_cache
        raise _engine_only("pause_generation")

    @override
    async def resume_generation(self) -> None:
        """Refuse, as ``pause_generation``."""
        raise _engine_only("resume_generation")

    @override
    async def is_paused(self) -> bool:
        """Never."""
        return False


def _engine_only(name: str) -> ServingError:
    return visible(Unsupported(f"{name} is not offered by the router: it concerns one engine"))
