"""An engine without a model: deterministic tokens, faults on demand.

The next token is a pure function of all token ids so far and the seed. So two fake engines
give the same stream, and one that is given a prompt and the first tokens of an answer goes on
exactly where the other was. A token id is the code of a printable ASCII character.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import psutil

from serving.clock import Clock, SystemClock
from serving.engine.fake.cache import FakeCache
from serving.engine.fake.tokens import FakeChoice, FakeParams, fake_error, fake_prompt_logprobs
from serving.engine.kv_mirror import KvMirror
from serving.errors import EngineError
from serving.link.protocol import PROTOCOL_VERSION, model_fingerprint
from serving.link.v1 import link_pb2
from serving.settings import Settings

_VOCABULARY = 65536
_MAX_MODEL_LEN = 2048
_EXPERTS = 16
_MOE_LAYERS = (1, 2)
_BLOCK = 16
"""Tokens of a KV-cache block."""


@dataclass(slots=True)
class FakeFaults:
    """What goes wrong and when; may be changed while the engine runs."""

    start_error: str | None = None
    """``start`` fails with this."""
    refuse: str | None = None
    """New requests end with OVERLOADED and this."""
    fail_after: int | None = None
    """The engine dies when it has generated so many tokens in all."""
    stall_after: int | None = None
    """It stops making steps when it has generated so many tokens in all."""


@dataclass(slots=True)
class _Request:
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    running: bool = False


class FakeEngine:
    """Engine protocol without vLLM."""

    def __init__(
        self,
        settings: Settings,
        *,
        rank: int = 0,
        clock: Clock | None = None,
        token_delay: float = 0.0,
        faults: FakeFaults | None = None,
        kv_blocks: int | None = None,
    ) -> None:
        """Remember the arguments.

        Args:
            settings: model name, capacity, number of ranks, and whether prefixes are cached
                (``engine.args.enable_prefix_caching``) are taken from them.
            rank: index in the group; says which experts are here.
            clock: source of time for health and load.
            token_delay: seconds from one token of a request to the next.
            faults: what goes wrong.
            kv_blocks: size of the KV cache; default: room for ``max_num_seqs`` of the longest.

        """
        self.faults = faults or FakeFaults()
        self._settings = settings
        self._rank = rank
        self._clock = clock or SystemClock()
        self._token_delay = token_delay
        self._max_len = settings.engine.max_model_len or _MAX_MODEL_LEN
        self._running = False
        self._dead = asyncio.Event()
        self._requests: dict[str, _Request] = {}
        self._slots = asyncio.Semaphore(settings.engine.max_num_seqs)
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
        """What the made-up prefix cache holds."""
        return self._cache.mirror if self._caching else None

    async def start(self) -> None:
        """Be ready at once.

        Raises:
            EngineError: the faults say so.
        """
        if self.faults.start_error is not None:
            raise EngineError(self.faults.start_error)
        self._running = True

    def describe(self) -> link_pb2.Hello:
        """Return a made-up capacity."""
        return link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            engine_version="fake 1",
            model=self._settings.model.name,
            model_fingerprint=model_fingerprint(self._settings.model.path),
            pid=os.getpid(),
            capacity=link_pb2.Capacity(
                max_model_len=self._max_len,
                max_num_seqs=self._settings.engine.max_num_seqs,
                kv_blocks=self._kv_blocks,
                kv_block_size=_BLOCK,
                tensor_parallel_size=self._settings.group.tensor_parallel,
            ),
            experts=link_pb2.ExpertPlacement(total=_EXPERTS, local_ids=self._local),
        )

    async def generate(self, work: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield one delta a token (of every choice); see the protocol."""
        codes = link_pb2.RequestError
        request_id = work.request_id
        if not self._running or self._dead.is_set():
            yield fake_error(request_id, codes.ENGINE_FAILED, "the engine is not running")
            return
        if self.faults.refuse is not None:
            yield fake_error(request_id, codes.OVERLOADED, self.faults.refuse)
            return
        try:
            params = self._checked(work)
        except (msgspec.MsgspecError, ValueError) as error:
            yield fake_error(request_id, codes.INVALID_REQUEST, str(error))
            return
        request = self._requests[request_id] = _Request()
        try:
            async with self._slots:
                request.running = True
                self._prompt_tokens += len(work.prompt_token_ids)
                async for delta in self._run(work, params, request):
                    yield delta
        finally:
            del self._requests[request_id]

    async def abort(self, request_id: str) -> None:
        """End the request with finish reason ABORT."""
        request = self._requests.get(request_id)
        if request is not None:
            request.aborted.set()

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return counts of what the fake has done."""
        health, reason = link_pb2.LoadSnapshot.HEALTHY, ""
        try:
            await self.check_health()
        except EngineError as error:
            reason = str(error)
            failed = self._dead.is_set() or not self._running
            health = link_pb2.LoadSnapshot.FAILED if failed else link_pb2.LoadSnapshot.STALLED
        running = sum(request.running for request in self._requests.values())
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
            resident_bytes=psutil.Process().memory_info().rss,
            step_seconds=self._token_delay,
            busy_seconds_total=self._steps * self._token_delay,
            speculation=self._speculation(),
        )

    async def check_health(self) -> None:
        """Return if the engine makes progress.

        Raises:
            EngineError: it is dead, or has work and has stalled.
        """
        if self._dead.is_set():
            raise EngineError("the fake engine was made to fail")
        if not self._running:
            raise EngineError("the engine is not running")
        still = self._clock.monotonic() - self._last_step
        if self._requests and still > self._settings.fleet.stall_timeout:
            raise EngineError(f"the engine has work and has made no step for {still:.1f} s")

    async def shutdown(self) -> None:
        """End all requests."""
        self._running = False
        self._dead.set()

    def _checked(self, work: link_pb2.Submit) -> FakeParams:
        """Read the parameters and look at the prompt.

        Raises:
            ValueError: the prompt is not acceptable.
            msgspec.MsgspecError: the parameters are not.
        """
        params = msgspec.msgpack.decode(work.sampling_params, type=FakeParams)
        prompt = work.prompt_token_ids
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) >= self._max_len:
            raise ValueError(f"the prompt ({len(prompt)}) is not shorter than {self._max_len}")
        if max(prompt) >= _VOCABULARY:
            raise ValueError(f"token id {max(prompt)} is out of vocabulary")
        if work.request_id in self._requests:
            raise ValueError(f"request id {work.request_id} is in use")
        return params

    async def _run(
        self,
        work: link_pb2.Submit,
        params: FakeParams,
        request: _Request,
    ) -> AsyncIterator[link_pb2.Delta]:
        prompt = list(work.prompt_token_ids)
        choices = [
            FakeChoice(prompt, params, (params.seed or 0) + index) for index in range(params.n)
        ]
        if not any(other.running for other in self._requests.values() if other is not request):
            self._last_step = self._clock.monotonic()  # the wait for work is no stall
        first = True
        said: list[int] = []
        cached = self._cache.cached_tokens(prompt)
        self._cache.keep(prompt)
        while not all(choice.finished for choice in choices):
            await self._step(request)
            delta = link_pb2.Delta(request_id=work.request_id)
            if self._dead.is_set():
                code = link_pb2.RequestError.ENGINE_FAILED
                yield fake_error(work.request_id, code, "the fake engine was made to fail")
                return
            for index, choice in enumerate(choices):
                if choice.finished:
                    continue
                message = delta.choices.add(index=index)
                if request.aborted.is_set():
                    message.finish_reason = link_pb2.ChoiceDelta.ABORT
                    choice.finished = True
                else:
                    self._count(choice.advance(message, self._max_len))
            said += delta.choices[0].token_ids  # of several choices a mixture: it matches nothing
            if first:
                delta.prompt_tokens = len(prompt)
                delta.cached_tokens = cached
                if params.prompt_logprobs is not None:
                    delta.prompt_logprobs.extend(fake_prompt_logprobs(prompt, params))
                first = False
            delta.finished = all(choice.finished for choice in choices)
            if delta.finished:
                self._cache.keep(prompt + said)
            yield delta

    async def _step(self, request: _Request) -> None:
        """Wait as long as a step takes, or for ever if stalled; a death or abort ends it."""
        limit = self.faults.stall_after
        stalled = limit is not None and self._tokens >= limit
        waits = [asyncio.ensure_future(event.wait()) for event in (self._dead, request.aborted)]
        try:
            if stalled or self._token_delay > 0:
                await asyncio.wait(
                    waits,
                    timeout=None if stalled else self._token_delay,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            else:
                await asyncio.sleep(0)
        finally:
            for wait in waits:
                wait.cancel()
        self._last_step = self._clock.monotonic()
        self._steps += 1

    def _speculation(self) -> link_pb2.SpeculationCounts:
        """Make up that three of four drafted tokens were accepted, if drafting is asked for."""
        if self._settings.engine.speculative == "none":
            return link_pb2.SpeculationCounts()
        return link_pb2.SpeculationCounts(
            draft_steps=self._tokens,
            proposed_tokens=self._tokens,
            accepted_tokens=self._tokens * 3 // 4,
        )

    def _count(self, token: int) -> None:
        """Account for a generated token; may kill the engine."""
        self._tokens += 1
        for layer, tokens in self._expert_tokens.items():
            expert = token * layer % _EXPERTS
            if expert in self._local:
                tokens[expert - self._local.start] += 1
        if self.faults.fail_after is not None and self._tokens >= self.faults.fail_after:
            self._dead.set()
