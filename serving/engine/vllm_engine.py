"""The engine of a rank: vLLM's AsyncLLM behind the Engine protocol."""

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
from serving.engine.arguments import engine_args, engine_config
from serving.engine.codec import (
    decode_params,
    decode_parser_kwargs,
    encode_output,
    error_delta,
    failure_delta,
    given_up,
)
from serving.engine.environment import apply_environment, engine_environment
from serving.engine.expert_watch import ExpertWatch
from serving.engine.fork_server import fork_engines
from serving.engine.kv_mirror import KvMirror
from serving.engine.kv_source import KvSource, publish_kv_events
from serving.engine.processes import EngineProcesses
from serving.engine.step_recorder import StepRecorder
from serving.errors import EngineError, SettingsError
from serving.link.protocol import PROTOCOL_VERSION, model_fingerprint
from serving.link.v1 import link_pb2
from serving.settings import Settings

_log = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT = 4.0
"""Seconds that vLLM's processes get to end by themselves; mostly they take one."""

_WARM_UP_TOKENS = 2

_INVALID = link_pb2.RequestError.INVALID_REQUEST
_NO_WAY_ON = (
    "structured_outputs: the engine gave up, because it cannot use the grammar or none of the "
    "model's tokens may come next in it"
)


class VllmEngine:
    """One rank's vLLM engine.

    ``start`` and ``shutdown`` run in a thread, since vLLM blocks in both for long.
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
        """Remember what to start; nothing runs yet.

        Args:
            settings: all settings.
            rank: index in the group, 0 <= rank < group.data_parallel.
            address: where rank 0 of the group runs.
            rpc_port: free port there, the same for all ranks of the group.
            processes: what its processes are kept in; they may come from a fork server.
            clock: source of time.

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
        self._experts: ExpertWatch | None = None
        self._kv_source: KvSource | None = None
        self._hello = link_pb2.Hello()
        self._processes = processes or EngineProcesses(self._clock)
        self._work_since: float | None = None

    async def start(self) -> None:
        """Load the model, join the group, generate a few tokens.

        Raises:
            SettingsError: vLLM refuses the arguments.
            EngineError: a process of the engine failed; its log says why.
        """
        try:
            # Shielded: a thread cannot be cancelled, shutdown must be able to wait for it.
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_blocking))
            await asyncio.shield(self._starting)
            self._follow_kv_cache()
            await self._warm_up()
            await self._learn()
        except BaseException:
            await self.shutdown()
            raise

    def describe(self) -> link_pb2.Hello:
        """Return what this engine is and holds."""
        hello = link_pb2.Hello()
        hello.CopyFrom(self._hello)
        return hello

    @property
    def kv_mirror(self) -> KvMirror | None:
        """What the prefix cache holds; see the protocol."""
        return None if self._kv_source is None else self._kv_source.mirror

    async def generate(self, work: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield the request's deltas; see the protocol."""
        request_id = work.request_id
        llm = self._llm
        if llm is None or llm.errored:
            yield error_delta(
                request_id,
                link_pb2.RequestError.ENGINE_FAILED,
                "the engine is not running",
            )
            return
        self._note_work(llm)
        first = True
        try:
            params = decode_params(work)
            stream = llm.generate(
                tokens_input(list(work.prompt_token_ids)),
                params,
                request_id,
                priority=work.priority,
                trace_headers=dict(work.trace_headers) or None,
                reasoning_ended=(
                    work.reasoning_ended if work.HasField("reasoning_ended") else None
                ),
                reasoning_parser_kwargs=decode_parser_kwargs(work),
            )
            async with contextlib.aclosing(stream):
                async for output in stream:
                    if params.structured_outputs is not None and given_up(output):
                        # The engine has lost nothing: the grammar leads nowhere.
                        yield error_delta(request_id, _INVALID, _NO_WAY_ON)
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
        """Return the load from what is known here; never waits for the engine."""
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
        """Return if the engine lives and makes steps while it has work.

        Raises:
            EngineError: otherwise.
        """
        llm = self._llm
        if llm is None:
            raise EngineError("the engine is not running")
        if llm.errored:
            raise EngineError("a process of the engine died; its log says why")
        if llm.output_processor.get_num_unfinished_requests() == 0:
            # A rank without work may run placeholder batches for the others in its group;
            # if those hang, the ranks with work say so.
            self._work_since = None
            return
        now = self._clock.monotonic()
        self._note_work(llm)
        assert self._work_since is not None
        still = min(self._steps.since_last_step(), now - self._work_since)
        limit = self._settings.fleet.stall_timeout
        if still > limit:
            raise EngineError(
                f"the engine has work and has made no step for {still:.1f} s "
                f"(fleet.stall_timeout is {limit:g} s)",
            )

    async def shutdown(self) -> None:
        """End all processes of the engine; see the protocol."""
        self._stopped = True
        if self._experts is not None:
            await self._experts.stop()
            self._experts = None
        if self._kv_source is not None:
            await self._kv_source.stop()
        if self._starting is not None and not self._starting.done():
            # Without its processes vLLM gives up starting.
            await asyncio.to_thread(self._processes.end)
            await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.to_thread(self._shutdown_blocking)

    def _note_work(self, llm: AsyncLLM) -> None:
        """Remember since when there is work without a break."""
        if self._work_since is None or llm.output_processor.get_num_unfinished_requests() == 0:
            self._work_since = self._clock.monotonic()

    def _start_blocking(self) -> None:
        apply_environment(engine_environment(self._settings))
        args = engine_args(
            self._settings,
            rank=self._rank,
            address=self._address,
            rpc_port=self._rpc_port,
        )
        # It may have been imported before the environment was set, or silenced by a shutdown.
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        try:
            config = engine_config(args)
            if self._stopped:
                raise EngineError("stopped while starting")  # noqa: TRY301
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
        """Listen before the first work: what was cached before is not told again."""
        assert self._llm is not None
        self._kv_source = KvSource.of(self._llm)
        if self._kv_source is not None:
            self._kv_source.start()

    async def _warm_up(self) -> None:
        """Generate a few tokens: the engine is ready when it has really done that."""
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

    async def _learn(self) -> None:
        """Ask the workers what they hold."""
        assert self._llm is not None
        config = self._llm.vllm_config
        self._experts = ExpertWatch(self._llm, self._clock)
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
            # It complains about what it is about to kill, and about the silence that follows.
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            try:
                llm.shutdown(timeout=_SHUTDOWN_TIMEOUT)
            except Exception:  # noqa: BLE001  whatever is left is killed below
                _log.exception("vLLM did not shut down in order")
        self._processes.end()
