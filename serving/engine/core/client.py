"""vLLM's client of an engine core, and the parts of vLLM that prepare requests for it.

``AsyncLLM`` builds the same objects. The rest of its work (detokenizing, stop strings, a generator
per request) is done in the router.
"""

from collections.abc import Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.config.kv_events import KVEventsConfig
from vllm.logger import configure_logging_if_needed
from vllm.lora.request import LoRARequest
from vllm.renderers import renderer_from_config
from vllm.tracing import init_tracer
from vllm.transformers_utils.config import maybe_register_config_serialize_by_value
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor import Executor
from vllm.v1.metrics.prometheus import shutdown_prometheus


class CoreClient:
    """A running engine core; with data parallelism, this rank's engine core of the group."""

    def __init__(self, config: VllmConfig) -> None:
        """Start the engine core's processes; blocks until the model is loaded.

        Args:
            config: vLLM's configuration of this rank.

        Raises:
            Exception: vLLM's error if a process does not start.
        """
        configure_logging_if_needed(config.logging_config)
        maybe_register_config_serialize_by_value()
        self.traces = config.observability_config.otlp_traces_endpoint is not None
        """Whether vLLM exports a span for each request."""
        if self.traces:
            init_tracer("vllm.llm_engine", config.observability_config.otlp_traces_endpoint)
        self.vllm_config = config
        self._renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self._renderer)
        self._client: Any = EngineCoreClient.make_async_mp_client(
            config, Executor.get_class(config), log_stats=True, renderer=self._renderer
        )

    @property
    def engine_indexes(self) -> list[int]:
        """Indices of the engine cores that this client started; it is only the rank's."""
        return list(self._client.engine_ranks_managed)

    @property
    def dead(self) -> bool:
        """Whether a process of the engine has ended."""
        return bool(self._client.resources.engine_dead)

    def get_kv_event_sources(self) -> dict[int, KVEventsConfig]:
        """Return the address at which the engine publishes changes to its prefix cache."""
        sources: dict[int, KVEventsConfig] = self._client.get_kv_event_sources()
        return sources

    async def add(self, request: EngineCoreRequest) -> None:
        """Send a request to the engine.

        Raises:
            EngineDeadError: A process of the engine has ended.
        """
        await self._client.add_request_async(request)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Send aborts to the engine; it ignores unknown ids."""
        await self._client.abort_requests_async(list(request_ids))

    async def outputs(self) -> EngineCoreOutputs:
        """Wait for the outputs of the next step and return them.

        Raises:
            EngineDeadError: A process of the engine has ended.
        """
        outputs: EngineCoreOutputs = await self._client.get_output_async()
        return outputs

    async def collective_rpc(self, method: str) -> list[Any]:
        """Call a method on all workers between two steps; return their results."""
        results: list[Any] = await self._client.collective_rpc_async(method)
        return results

    async def add_lora(self, lora: LoRARequest) -> None:
        """Load an adapter into the engine, between two steps; returns soon if it is loaded.

        Raises:
            EngineDeadError: A process of the engine has ended.
            Exception: The adapter cannot be loaded; the error is vLLM's.
        """
        await self._client.add_lora_async(lora)

    async def remove_lora(self, number: int) -> None:
        """Remove an adapter from the engine; ignored if it is not loaded.

        Raises:
            EngineDeadError: A process of the engine has ended.
        """
        await self._client.remove_lora_async(number)

    def shutdown(self, timeout: float) -> None:
        """Stop the engine's processes; blocks for up to ``timeout`` seconds."""
        shutdown_prometheus()
        self._renderer.shutdown()
        self._client.shutdown(timeout=timeout)
