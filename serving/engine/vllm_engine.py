"""Implementation of the Engine protocol with vLLM's AsyncLLM."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

from vllm import SamplingParams, __version__
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import Clock, SystemClock
from serving.engine.argument_checks import engine_config
from serving.engine.arguments import engine_args
from serving.engine.codec import (
    decode_params,
    decode_parser_kwargs,
    encode_output,
    error_delta,
    failed_choice,
    failure_delta,
)
from serving.engine.engine_processes import EngineProcesses
from serving.engine.environment import apply_environment, engine_environment
from serving.engine.fork_server import fork_engines
from serving.engine.kv_mirror import KvMirror
from serving.engine.kv_source import KvSource, publish_kv_events
from serving.engine.step_recorder import ExpertRecorder, StepRecorder
from serving.errors import EngineError, SettingsError
from serving.link.protocol import PROTOCOL_VERSION, model_fingerprint
from serving.link.v1 import link_pb2
from serving.settings import Settings

_log = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT = 4.0
"""Time for vLLM's processes to exit, seconds; they usually take 1 s."""

_WARM_UP_TOKENS = 2
"""Tokens to generate before the engine counts as started."""

_INVALID = link_pb2.RequestError.INVALID_REQUEST
_DEAD_END = (
    "structured_outputs: the engine cannot continue: it does not support the grammar, or the "
    "grammar allows none of the model's next tokens"
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
        self._llm: AsyncLLM | None = None
        self._experts: ExpertRecorder | None = None
        self._kv_source: KvSource | None = None
        self._hello = link_pb2.Hello()
        self._processes = processes or EngineProcesses(self._clock)
        self._busy_since: float | None = None

    async def start(self) -> None:
        """Load the model, join the group, generate a few tokens.

        Raises:
            SettingsError: vLLM rejects the arguments.
            EngineError: A process of the engine failed; its log has the reason.
        """
        try:
            # Shielded because a thread cannot be cancelled; shutdown waits for it.
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_blocking))
            await asyncio.shield(self._starting)
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

    async def generate(self, request: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield the request's deltas; see the protocol."""
        request_id = request.request_id
        llm = self._llm
        if llm is None or llm.errored:
            yield error_delta(
                request_id,
                link_pb2.RequestError.ENGINE_FAILED,
                "the engine is not running",
            )
            return
        self._note_busy(llm)
        first = True
        try:
            params = decode_params(request)
            stream = llm.generate(
                tokens_input(list(request.prompt_token_ids)),
                params,
                request_id,
                priority=request.priority,
                trace_headers=dict(request.trace_headers) or None,
                reasoning_ended=(
                    request.reasoning_ended if request.HasField("reasoning_ended") else None
                ),
                reasoning_parser_kwargs=decode_parser_kwargs(request),
            )
            async with contextlib.aclosing(stream):
                async for output in stream:
                    if params.structured_outputs is not None and failed_choice(output):
                        # The engine is healthy: the grammar allows no further token.
                        yield error_delta(request_id, _INVALID, _DEAD_END)
                        return
                    yield encode_output(output, request_id, first=first)
                    first = False
        except Exception as error:  # noqa: BLE001  every failure ends the request with a delta
            alone = first and not llm.errored
            yield failure_delta(request_id, error, alone=alone)

    async def abort(self, request_id: str) -> None:
        """End the request; its stream then ends with finish reason ABORT."""
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort(request_id)

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return the latest load figures without waiting for the engine."""
        snapshot = self._steps.snapshot()
        if self._experts is not None:
            self._experts.refresh()
            snapshot.experts.extend(self._experts.loads)
        snapshot.resident_bytes = self._processes.resident_bytes()
        try:
            await self.check_health()
        except EngineError as error:
            failed = self._llm is None or self._llm.errored
            snapshot.health = (
                link_pb2.LoadSnapshot.FAILED if failed else link_pb2.LoadSnapshot.STALLED
            )
            snapshot.health_reason = str(error)
        else:
            snapshot.health = link_pb2.LoadSnapshot.HEALTHY
        return snapshot

    async def check_health(self) -> None:
        """Check that the engine is alive and makes steps while it has requests.

        Raises:
            EngineError: The engine is not running, has failed or is stalled.
        """
        llm = self._llm
        if llm is None:
            raise EngineError("the engine is not running")
        if llm.errored:
            raise EngineError("an engine process died; see its log")
        if llm.output_processor.get_num_unfinished_requests() == 0:
            # A rank without requests may run dummy batches for the other ranks of the group. If
            # these hang, the ranks with requests report the stall.
            self._busy_since = None
            return
        now = self._clock.monotonic()
        self._note_busy(llm)
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
        await asyncio.to_thread(self._shutdown_blocking)

    def _note_busy(self, llm: AsyncLLM) -> None:
        """Record the time from which the engine has continuously had requests."""
        if self._busy_since is None or llm.output_processor.get_num_unfinished_requests() == 0:
            self._busy_since = self._clock.monotonic()

    def _start_blocking(self) -> None:
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
            self._llm = AsyncLLM.from_vllm_config(
                config,
                stat_loggers=[self._steps.factory],
                disable_log_stats=True,
                enable_log_requests=False,
            )
            self._processes.started()
        except (SettingsError, EngineError):
            raise
        except Exception as error:
            raise EngineError(f"the engine did not start: {error}") from error

    def _follow_kv_cache(self) -> None:
        """Subscribe before the first request: vLLM reports each cached block only once."""
        assert self._llm is not None
        self._kv_source = KvSource.of(self._llm)
        if self._kv_source is not None:
            self._kv_source.start()

    async def _warm_up(self) -> None:
        """Generate a few tokens to verify that the engine works."""
        assert self._llm is not None
        params = SamplingParams(
            max_tokens=_WARM_UP_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            async for _ in self._llm.generate(tokens_input([1, 1]), params, "warm-up"):
                pass
        except Exception as error:
            raise EngineError(f"the engine failed on its first tokens: {error}") from error
        await self._llm.collective_rpc("moe_serving_reset_expert_load")
        self._steps.reset()

    async def _read_hello(self) -> None:
        """Read the workers' experts and build the engine's Hello."""
        assert self._llm is not None
        config = self._llm.vllm_config
        self._experts = ExpertRecorder(self._llm, self._clock)
        await self._experts.update()
        self._hello = link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            engine_version=f"vllm {__version__}",
            model=self._settings.model.name,
            model_fingerprint=model_fingerprint(self._settings.model.path),
            pid=os.getpid(),
            capacity=link_pb2.Capacity(
                max_model_len=config.model_config.max_model_len,
                max_num_seqs=config.scheduler_config.max_num_seqs,
                kv_blocks=config.cache_config.num_gpu_blocks or 0,
                kv_block_size=config.cache_config.block_size,
                tensor_parallel_size=self._settings.group.tensor_parallel,
            ),
            experts=self._experts.placement,
        )

    def _shutdown_blocking(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            # Suppresses vLLM's errors about the processes that it is about to kill.
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            try:
                llm.shutdown(timeout=_SHUTDOWN_TIMEOUT)
            except Exception:  # noqa: BLE001  remaining processes are killed below
                _log.exception("vLLM did not shut down cleanly")
        self._processes.end()
