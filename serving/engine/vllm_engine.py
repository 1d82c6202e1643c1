"""Implementation of the Engine protocol with vLLM's engine core.

vLLM's own front end, ``AsyncLLM``, is not used: see :mod:`serving.engine.core`.
"""

import asyncio
import logging
import os

import msgspec
from vllm import __version__
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from serving.clock import Clock, SystemClock
from serving.engine.adapter_copies import HeldAdapter
from serving.engine.adapters import NO_ADAPTERS, RankAdapters
from serving.engine.argument_checks import engine_config, first_line
from serving.engine.arguments import engine_args
from serving.engine.base import NOT_RUNNING, Deliver, RunningRequest
from serving.engine.codec import error_delta
from serving.engine.core.client import CoreClient
from serving.engine.core.requests import CoreRequests
from serving.engine.core.statistics import StepStatistics
from serving.engine.engine_processes import EngineProcesses
from serving.engine.environment import apply_environment, engine_environment
from serving.engine.fork_server import fork_engines
from serving.engine.kv_mirror import KvMirror
from serving.engine.kv_source import KvSource, publish_kv_events
from serving.engine.step_recorder import ExpertRecorder, StepRecorder
from serving.errors import EngineError, SettingsError
from serving.link.adapter_files import AdapterError
from serving.link.protocol import PROTOCOL_VERSION, model_fingerprint
from serving.link.v1 import link_pb2
from serving.settings import Settings

_log = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT = 4.0
"""Time for vLLM's processes to exit, seconds; they usually take 1 s."""

_NO_ENGINE = "the engine is not running"

_Code = link_pb2.RequestError

_WARM_UP_TOKENS = 2
"""Number of tokens to generate before the engine counts as started."""

_WARM_UP = link_pb2.Submit(
    request_id="warm-up",
    prompt_token_ids=[1, 1],
    sampling_params=msgspec.msgpack.encode(
        {"max_tokens": _WARM_UP_TOKENS, "temperature": 0.0, "ignore_eos": True}
    ),
)


class VllmEngine:
    """One rank's vLLM engine.

    ``start`` and ``shutdown`` call vLLM in a thread, because the calls block for seconds.
    """

    def __init__(
        self,
        settings: Settings,
        rank: int = 0,
        address: str = "127.0.0.1",
        rpc_port: int = 0,
        *,
        processes: EngineProcesses | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Create the engine without starting anything.

        Args:
            settings: All settings.
            rank: Index in the group, 0 <= rank < group.data_parallel.
            address: Address of rank 0's node.
            rpc_port: Free port on that node, the same for all ranks of the group.
            processes: Tracker of the engine's processes, with or without a fork server.
            clock: Source of time.
        """
        self._settings = settings
        self._rank = rank
        self._address = address
        self._rpc_port = rpc_port
        self._clock = clock or SystemClock()
        self._steps = StepRecorder(self._clock)
        self._starting: asyncio.Future[None] | None = None
        self._stopped = False
        self._core: CoreClient | None = None
        self._requests: CoreRequests | None = None
        self._experts: ExpertRecorder | None = None
        self._kv_source: KvSource | None = None
        self._hello = link_pb2.Hello()
        self._processes = processes or EngineProcesses(self._clock)
        self._busy_since: float | None = None
        self._adapters: RankAdapters | None = None
        """None: the model has no adapters."""
        if settings.model.runs_adapters:
            self._adapters = RankAdapters(settings.model, self, self._start_adapted, self._clock)

    async def start(self) -> None:
        """Load the model, join the group, generate a few tokens.

        Raises:
            SettingsError: vLLM rejects the arguments.
            EngineError: A process of the engine failed; its log contains the reason.
        """
        try:
            # Shielded because a thread cannot be cancelled; shutdown waits for it.
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_blocking))
            await asyncio.shield(self._starting)
            self._accept_requests()
            self._follow_kv_cache()
            await self._warm_up()
            await self._read_hello()
        except BaseException:
            await self.shutdown()
            raise

    def describe(self) -> link_pb2.Hello:
        """Return the engine's version, model, capacity and experts; see the protocol."""
        hello = link_pb2.Hello()
        hello.CopyFrom(self._hello)
        return hello

    @property
    def kv_mirror(self) -> KvMirror | None:
        """Content of the prefix cache; see the protocol."""
        return None if self._kv_source is None else self._kv_source.mirror

    def submit(self, request: link_pb2.Submit, deliver: Deliver) -> RunningRequest:
        """Start a request; see the protocol."""
        requests = self._requests
        if requests is None:
            deliver(
                error_delta(
                    request.request_id,
                    _Code.ENGINE_FAILED,
                    _NO_ENGINE,
                )
            )
            return NOT_RUNNING
        self._note_busy(requests)
        if request.HasField("adapter"):
            return self._submit_adapted(request, deliver)
        return requests.submit(request, deliver)

    def _submit_adapted(self, request: link_pb2.Submit, deliver: Deliver) -> RunningRequest:
        if self._adapters is None:
            deliver(error_delta(request.request_id, _Code.ADAPTER, NO_ADAPTERS))
            return NOT_RUNNING
        return self._adapters.submit(request, deliver)

    def _start_adapted(
        self, request: link_pb2.Submit, deliver: Deliver, adapter: HeldAdapter
    ) -> RunningRequest:
        requests = self._requests
        if requests is None:
            deliver(error_delta(request.request_id, _Code.ENGINE_FAILED, _NO_ENGINE))
            return NOT_RUNNING
        self._note_busy(requests)
        return requests.submit(request, deliver, _lora(adapter))

    async def load_adapter(self, adapter: HeldAdapter) -> None:
        """Load an adapter; see ``adapters.AdapterLoader``."""
        if self._core is None:
            raise EngineError(_NO_ENGINE)
        try:
            await self._core.add_lora(_lora(adapter))
        except EngineDeadError as error:
            raise EngineError("an engine process died") from error
        except Exception as error:
            raise AdapterError(f"vLLM cannot load it: {first_line(error)}") from error

    async def remove_adapter(self, adapter: HeldAdapter) -> None:
        """Remove an adapter; see ``adapters.AdapterLoader``."""
        if self._core is None:
            raise EngineError(_NO_ENGINE)
        try:
            await self._core.remove_lora(adapter.number)
        except EngineDeadError as error:
            raise EngineError("an engine process died") from error

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return the latest load figures without waiting for the engine."""
        snapshot = self._steps.snapshot()
        if self._experts is not None:
            self._experts.refresh()
            snapshot.experts.extend(self._experts.loads)
        snapshot.resident_bytes = self._processes.resident_bytes()
        if self._adapters is not None:
            snapshot.adapters.CopyFrom(self._adapters.report())
        try:
            await self.check_health()
        except EngineError as error:
            failed = self._requests is None or self._requests.failed
            snapshot.health = (
                link_pb2.LoadSnapshot.FAILED if failed else link_pb2.LoadSnapshot.STALLED
            )
            snapshot.health_reason = str(error)
        else:
            snapshot.health = link_pb2.LoadSnapshot.HEALTHY
        return snapshot

    async def check_health(self) -> None:
        """Check that the engine is alive and executes steps while it has requests.

        Raises:
            EngineError: The engine is not running, has failed or is stalled.
        """
        requests = self._requests
        if requests is None:
            raise EngineError("the engine is not running")
        if requests.failed:
            raise EngineError("an engine process died; see its log")
        if requests.unfinished == 0:
            # A rank without requests may run dummy batches for the other ranks of the group. If
            # these hang, the ranks with requests report the stall.
            self._busy_since = None
            return
        now = self._clock.monotonic()
        self._note_busy(requests)
        assert self._busy_since is not None
        still = min(self._steps.since_last_step(), now - self._busy_since)
        limit = self._settings.fleet.stall_timeout
        if still > limit:
            raise EngineError(
                f"the engine has requests but has completed no step for {still:.1f} s "
                f"(fleet.stall_timeout is {limit:g} s)",
            )

    async def shutdown(self) -> None:
        """Stop the engine and all its processes; see the protocol."""
        self._stopped = True
        if self._experts is not None:
            await self._experts.stop()
            self._experts = None
        if self._kv_source is not None:
            await self._kv_source.stop()
        if self._starting is not None and not self._starting.done():
            # Ending the processes makes vLLM's start fail, and its thread return.
            await asyncio.to_thread(self._processes.end)
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._adapters is not None:
            await self._adapters.stop()
        if self._requests is not None:
            await self._requests.stop()
            self._requests = None
        await asyncio.to_thread(self._shutdown_blocking)

    def _note_busy(self, requests: CoreRequests) -> None:
        """Record the time from which the engine has continuously had requests."""
        if self._busy_since is None or requests.unfinished == 0:
            self._busy_since = self._clock.monotonic()

    def _start_blocking(self) -> None:
        if self._adapters is not None:
            self._adapters.copies.check()
        apply_environment(engine_environment(self._settings))
        args = engine_args(
            self._settings,
            rank=self._rank,
            address=self._address,
            rpc_port=self._rpc_port,
        )
        # vLLM may have been imported before the variable was set, or silenced by a shutdown.
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        try:
            config = engine_config(args)
            if self._stopped:
                raise EngineError("stopped during the start")  # noqa: TRY301
            folder = os.environ["VLLM_RPC_BASE_PATH"] = self._processes.watch()
            publish_kv_events(config, folder)
            if self._processes.forked:
                fork_engines()
            self._core = CoreClient(config)
            self._processes.started()
        except (SettingsError, EngineError):
            raise
        except Exception as error:
            raise EngineError(f"the engine did not start: {error}") from error

    def _accept_requests(self) -> None:
        assert self._core is not None
        statistics = StepStatistics(self._core, [self._steps.factory])
        self._requests = CoreRequests(self._core, statistics)
        self._requests.start()

    def _follow_kv_cache(self) -> None:
        """Subscribe before the first request, because vLLM reports each cached block only once."""
        assert self._core is not None
        self._kv_source = KvSource.of(self._core)
        if self._kv_source is not None:
            self._kv_source.start()

    async def _warm_up(self) -> None:
        """Generate a few tokens to verify that the engine works."""
        assert self._core is not None
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def deliver(delta: link_pb2.Delta) -> None:
            if delta.finished and not ended.done():
                ended.set_result(delta.error.message)

        self.submit(_WARM_UP, deliver)
        if error := await ended:
            raise EngineError(f"the engine failed on its first tokens: {error}")
        await self._core.collective_rpc("moe_serving_reset_expert_load")
        self._steps.reset()

    async def _read_hello(self) -> None:
        """Read the workers' experts and build the engine's Hello."""
        assert self._core is not None
        config = self._core.vllm_config
        self._experts = ExpertRecorder(self._core, self._clock)
        await self._experts.update()
        self._hello = link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            engine_version=f"vllm {__version__}",
            model=self._settings.model.name,
            model_fingerprint=model_fingerprint(self._settings.model.path),
            pool=self._settings.group.pool,
            pid=os.getpid(),
            capacity=link_pb2.Capacity(
                max_model_len=config.model_config.max_model_len,
                max_num_seqs=config.scheduler_config.max_num_seqs,
                kv_blocks=config.cache_config.num_gpu_blocks or 0,
                kv_block_size=config.cache_config.block_size,
                tensor_parallel_size=self._settings.group.tensor_parallel,
            ),
            experts=self._experts.placement,
            adapters=None if self._adapters is None else self._adapters.capacity,
        )

    def _shutdown_blocking(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            # Suppresses vLLM's errors about the processes that it is about to kill.
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            try:
                core.shutdown(timeout=_SHUTDOWN_TIMEOUT)
            except Exception:  # noqa: BLE001  remaining processes are killed below
                _log.exception("vLLM did not shut down cleanly")
        self._processes.end()


def _lora(adapter: HeldAdapter) -> LoRARequest:
    """Return an adapter for vLLM, which identifies cached blocks by its name and its path."""
    return LoRARequest(adapter.key, adapter.number, str(adapter.folder))
