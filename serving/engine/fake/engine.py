"""An engine without a model: deterministic tokens, and faults on demand.

The next token is a pure function of all previous token ids and the seed. Two fake engines
therefore generate the same stream, and an engine that is given a prompt and the first tokens of
an answer continues the answer exactly. A token id is the code of a printable ASCII character.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import psutil
from typing_extensions import override

from serving.clock import Clock, SystemClock
from serving.engine.adapter_copies import HeldAdapter
from serving.engine.adapters import NO_ADAPTERS, RankAdapters
from serving.engine.base import NOT_RUNNING, Deliver, RunningRequest
from serving.engine.fake.cache import FakeCache
from serving.engine.fake.tokens import FakeChoice, FakeParams, fake_error, fake_prompt_logprobs
from serving.engine.generating import GeneratingEngine
from serving.engine.kv_mirror import KvMirror
from serving.errors import EngineError
from serving.link.adapter_files import AdapterError
from serving.link.block_hashes import ROOT, adapter_root
from serving.link.protocol import PROTOCOL_VERSION, adapter_key, model_fingerprint
from serving.link.v1 import link_pb2
from serving.settings import Settings

_VOCABULARY = 65536
_MAX_MODEL_LEN = 2048
_EXPERTS = 16
_MOE_LAYERS = (1, 2)
_BLOCK = 16
"""Number of tokens per KV-cache block."""


@dataclass(slots=True)
class FakeFaults:
    """Faults to simulate; can be changed while the engine runs. ``None`` disables a fault."""

    start_error: str | None = None
    """Error message of ``start``."""
    reject: str | None = None
    """Error message for new requests, which end with OVERLOADED."""
    fail_after: int | None = None
    """Total number of generated tokens after which the engine fails."""
    load_adapter: str | None = None
    """Error message of loading any adapter."""
    stall_after: int | None = None
    """Total number of generated tokens after which the engine stalls."""


@dataclass(slots=True)
class _State:
    running: bool = False


class FakeEngine(GeneratingEngine):
    """Implementation of the Engine protocol without vLLM."""

    def __init__(
        self,
        settings: Settings,
        *,
        rank: int = 0,
        clock: Clock | None = None,
        token_delay: float = 0.0,
        faults: FakeFaults | None = None,
        kv_blocks: int | None = None,
        adapter_delay: float = 0.0,
    ) -> None:
        """Create the engine without starting it.

        Args:
            settings: Source of the model name, the capacity, the number of ranks, and whether
                prefixes are cached (``engine.args.enable_prefix_caching``).
            rank: Index in the group; determines the local experts.
            clock: Source of time for health and load.
            token_delay: Time between two tokens of a request, seconds.
            faults: Faults to simulate; by default none.
            kv_blocks: Size of the KV cache in blocks; by default enough for ``max_num_seqs``
                requests of maximum length.
            adapter_delay: Seconds to load an adapter.
        """
        self.adapters: RankAdapters | None = None
        """LoRA adapters. None if the model has none."""
        if settings.model.runs_adapters:
            clock = clock or SystemClock()
            self.adapters = RankAdapters(settings.model, self, self._start_adapted, clock)
        self._adapter_delay = adapter_delay
        self._held: dict[int, str] = {}
        self.faults = faults or FakeFaults()
        self._settings = settings
        self._rank = rank
        self._clock = clock or SystemClock()
        self._token_delay = token_delay
        self._max_len = settings.engine.max_model_len or _MAX_MODEL_LEN
        self._running = False
        self._dead = asyncio.Event()
        self._requests: dict[str, _State] = {}
        self._slots = asyncio.Semaphore(settings.engine.max_num_seqs)
        self._process = psutil.Process()
        self._last_step = self._clock.monotonic()
        self._steps = self._prompt_tokens = self._tokens = 0
        ranks = settings.group.data_parallel
        self._local = range(_EXPERTS * rank // ranks, _EXPERTS * (rank + 1) // ranks)
        self._expert_tokens = {layer: [0] * len(self._local) for layer in _MOE_LAYERS}
        self._kv_blocks = kv_blocks or settings.engine.max_num_seqs * self._max_len // _BLOCK
        self._caching = bool(settings.engine.args.get("enable_prefix_caching", True))
        self._cache = FakeCache(self._kv_blocks if self._caching else 0, _BLOCK)

    @property
    def kv_mirror(self) -> KvMirror | None:
        """Content of the simulated prefix cache; None if prefixes are not cached."""
        return self._cache.mirror if self._caching else None

    async def start(self) -> None:
        """Mark the engine as running; returns immediately.

        Raises:
            EngineError: ``faults.start_error`` is set.
        """
        if self.faults.start_error is not None:
            raise EngineError(self.faults.start_error)
        if self.adapters is not None:
            await asyncio.to_thread(self.adapters.copies.check)
        self._running = True

    def describe(self) -> link_pb2.Hello:
        """Return a Hello with the simulated capacity and experts."""
        return link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            engine_version="fake 1",
            model=self._settings.model.name,
            model_fingerprint=model_fingerprint(self._settings.model.path),
            pool=self._settings.group.pool,
            pid=os.getpid(),
            capacity=link_pb2.Capacity(
                max_model_len=self._max_len,
                max_num_seqs=self._settings.engine.max_num_seqs,
                kv_blocks=self._kv_blocks,
                kv_block_size=_BLOCK,
                tensor_parallel_size=self._settings.group.tensor_parallel,
            ),
            experts=link_pb2.ExpertPlacement(total=_EXPERTS, local_ids=self._local),
            adapters=None if self.adapters is None else self.adapters.capacity,
        )

    @override
    def submit(self, request: link_pb2.Submit, deliver: Deliver) -> RunningRequest:
        """Start a request; see the protocol."""
        if not request.HasField("adapter"):
            return super().submit(request, deliver)
        if self.adapters is None:
            code = link_pb2.RequestError.ADAPTER
            deliver(fake_error(request.request_id, code, NO_ADAPTERS))
            return NOT_RUNNING
        return self.adapters.submit(request, deliver)

    def _start_adapted(
        self, request: link_pb2.Submit, deliver: Deliver, adapter: HeldAdapter
    ) -> RunningRequest:
        if adapter.number not in self._held:
            raise EngineError(f"the engine got a request for {adapter.key}, which it does not hold")
        return super().submit(request, deliver)

    async def load_adapter(self, adapter: HeldAdapter) -> None:
        """Simulate loading an adapter; see ``adapters.AdapterLoader``."""
        if not self._running or self._dead.is_set():
            raise EngineError("the engine is not running")
        if adapter.number in self._held:
            return
        if self._adapter_delay:
            await asyncio.sleep(self._adapter_delay)
        if self.faults.load_adapter is not None:
            raise AdapterError(self.faults.load_adapter)
        self._held[adapter.number] = adapter.key

    async def remove_adapter(self, adapter: HeldAdapter) -> None:
        """Simulate removing an adapter; see ``adapters.AdapterLoader``."""
        self._held.pop(adapter.number, None)

    async def generate(self, request: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield one delta per step, with one token of each choice; see the protocol."""
        codes = link_pb2.RequestError
        request_id = request.request_id
        if not self._running or self._dead.is_set():
            yield fake_error(request_id, codes.ENGINE_FAILED, "the engine is not running")
            return
        if self.faults.reject is not None:
            yield fake_error(request_id, codes.OVERLOADED, self.faults.reject)
            return
        try:
            params = self._checked(request)
        except (msgspec.MsgspecError, ValueError) as error:
            yield fake_error(request_id, codes.INVALID_REQUEST, str(error))
            return
        state = self._requests[request_id] = _State()
        try:
            async with self._slots:
                state.running = True
                self._prompt_tokens += len(request.prompt_token_ids)
                async for delta in self._run(request, params, state):
                    yield delta
        finally:
            del self._requests[request_id]

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return this engine's load and health."""
        health, reason = link_pb2.LoadSnapshot.HEALTHY, ""
        try:
            await self.check_health()
        except EngineError as error:
            reason = str(error)
            failed = self._dead.is_set() or not self._running
            health = link_pb2.LoadSnapshot.FAILED if failed else link_pb2.LoadSnapshot.STALLED
        running = sum(state.running for state in self._requests.values())
        return link_pb2.LoadSnapshot(
            health=health,
            health_reason=reason,
            running_requests=running,
            waiting_requests=len(self._requests) - running,
            kv_usage=min(1.0, running / self._settings.engine.max_num_seqs),
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._tokens,
            engine_steps_total=self._steps,
            since_last_step_ms=int((self._clock.monotonic() - self._last_step) * 1000),
            experts=[
                link_pb2.LayerExpertLoad(layer=f"model.layers.{layer}.mlp.experts", tokens=tokens)
                for layer, tokens in self._expert_tokens.items()
            ],
            resident_bytes=self._process.memory_info().rss,
            step_seconds=self._token_delay,
            busy_seconds_total=self._steps * self._token_delay,
            speculation=self._speculation(),
            adapters=None if self.adapters is None else self.adapters.report(),
        )

    async def check_health(self) -> None:
        """Check that the engine makes progress.

        Raises:
            EngineError: The engine has failed, is not running, or has requests and is stalled.
        """
        if self._dead.is_set():
            raise EngineError("the fake engine failed as configured")
        if not self._running:
            raise EngineError("the engine is not running")
        still = self._clock.monotonic() - self._last_step
        if self._requests and still > self._settings.fleet.stall_timeout:
            raise EngineError(
                f"the engine has requests but has completed no step for {still:.1f} s"
            )

    async def shutdown(self) -> None:
        """End all requests."""
        self._running = False
        self._dead.set()
        if self.adapters is not None:
            await self.adapters.stop()

    def _checked(self, request: link_pb2.Submit) -> FakeParams:
        """Return the parameters of a valid request.

        Raises:
            ValueError: The prompt or the request id is invalid.
            msgspec.MsgspecError: The parameters do not decode.
        """
        params = msgspec.msgpack.decode(request.sampling_params, type=FakeParams)
        prompt = request.prompt_token_ids
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) >= self._max_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, more than the maximum of {self._max_len - 1}"
            )
        if max(prompt) >= _VOCABULARY:
            raise ValueError(f"token id {max(prompt)} is out of vocabulary")
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id} is already in use")
        return params

    async def _run(
        self,
        request: link_pb2.Submit,
        params: FakeParams,
        state: _State,
    ) -> AsyncIterator[link_pb2.Delta]:
        prompt = list(request.prompt_token_ids)
        root = ROOT
        if request.HasField("adapter"):
            root = adapter_root(adapter_key(request.adapter.name, request.adapter.digest))
        # The root makes the tokens of each adapter different ones.
        seed = (params.seed or 0) + root
        choices = [FakeChoice(prompt, params, seed + index) for index in range(params.n)]
        if not any(other.running for other in self._requests.values() if other is not state):
            self._last_step = self._clock.monotonic()  # idle time is not a stall
        first = True
        generated: list[int] = []
        cached = self._cache.cached_tokens(prompt, root)
        self._cache.keep(prompt, root)
        while not all(choice.finished for choice in choices):
            await self._step(state)
            delta = link_pb2.Delta(request_id=request.request_id)
            if self._dead.is_set():
                code = link_pb2.RequestError.ENGINE_FAILED
                text = "the fake engine failed as configured"
                yield fake_error(request.request_id, code, text)
                return
            for index, choice in enumerate(choices):
                if choice.finished:
                    continue
                message = delta.choices.add(index=index)
                self._count(choice.advance(message, self._max_len))
            generated += delta.choices[0].token_ids  # meaningful only for a single choice
            if first:
                delta.prompt_tokens = len(prompt)
                delta.cached_tokens = cached
                if params.prompt_logprobs is not None:
                    delta.prompt_logprobs.extend(fake_prompt_logprobs(prompt, params))
                first = False
            delta.finished = all(choice.finished for choice in choices)
            if delta.finished:
                self._cache.keep(prompt + generated, root)
            yield delta

    async def _step(self, state: _State) -> None:
        """Wait for the duration of a step, or indefinitely if stalled; failure ends it."""
        del state
        limit = self.faults.stall_after
        stalled = limit is not None and self._tokens >= limit
        if stalled or self._token_delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if stalled else self._token_delay):
                    await self._dead.wait()
        else:
            await asyncio.sleep(0)
        self._last_step = self._clock.monotonic()
        self._steps += 1

    def _speculation(self) -> link_pb2.SpeculationCounts:
        """Return counts with 3 of 4 drafted tokens accepted; zeros without speculation."""
        if self._settings.engine.speculative == "none":
            return link_pb2.SpeculationCounts()
        return link_pb2.SpeculationCounts(
            draft_steps=self._tokens,
            proposed_tokens=self._tokens,
            accepted_tokens=self._tokens * 3 // 4,
        )

    def _count(self, token: int) -> None:
        """Count a generated token; fail the engine if ``faults.fail_after`` is reached."""
        self._tokens += 1
        for layer, tokens in self._expert_tokens.items():
            expert = token * layer % _EXPERTS
            if expert in self._local:
                tokens[expert - self._local.start] += 1
        if self.faults.fail_after is not None and self._tokens >= self.faults.fail_after:
            self._dead.set()
