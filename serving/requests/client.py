"""The fleet as an ``EngineClient``: vLLM's OpenAI app on top, ranks over the link below.

``generate`` checks the request with vLLM's own input processor before anything is sent, picks
a rank, submits, and yields vLLM's ``RequestOutput`` exactly as an engine in this process would.
"""

import asyncio
import functools
import itertools
import random
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.engine.protocol import StreamingInput
from vllm.inputs import EngineInput, PromptType
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers import renderer_from_config
from vllm.renderers.inputs.preprocess import extract_prompt_components
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.kv_hints import KvHintsEnvelope

from serving.admission.api import OpenTurnstile, Turnstile
from serving.clock import Clock, SystemClock
from serving.dispatch.dispatcher import Placer
from serving.errors import (
    InvalidRequest,
    NotReady,
    Overloaded,
    ServingError,
    Unsupported,
    status_of,
)
from serving.fleet.deadline import deadline_var
from serving.fleet.membership import Roster
from serving.link.v1 import link_pb2
from serving.request_context import Caller, caller
from serving.requests.outcome import counted
from serving.requests.output_buffer import Transcript
from serving.requests.poison import Quarantine
from serving.requests.prepared import Prepared
from serving.requests.request import FleetRequest
from serving.requests.resume import needs_seed
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.tenants import TenantTokens
from serving.vllm_adapter.errors import visible
from serving.vllm_adapter.tokenizing import tokenize_short_texts_at_once
from serving.vllm_adapter.unsupported_api import NoEngine

_TRANSFERS = {"kv_transfer_params", "ec_transfer_params"}
_TASKS: tuple[SupportedTask, ...] = ("generate",)
_GRAMMAR_THREADS = 2
"""So many requests' schemas and grammars are read at a time; the tokenizer has a thread apart."""


class FleetClient(NoEngine):
    """Generates on whichever rank of the fleet suits best."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        roster: Roster,
        settings: Settings,
        clock: Clock | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = renderer_from_config(vllm_config)
        tokenize_short_texts_at_once(self.renderer)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self._grammars = ThreadPoolExecutor(_GRAMMAR_THREADS, "grammar")
        self.roster = roster
        self._settings = settings
        self._clock = clock or SystemClock()
        self._turnstile: Turnstile = turnstile or OpenTurnstile(self._clock)
        self._inflight = 0
        self._placer = Placer(roster, settings.routing, self._clock)
        self._tenants = TenantTokens(settings.telemetry.tenant_labels)
        self._numbers = itertools.count(1)
        self._random = random.SystemRandom()
        self._quarantine = Quarantine(lambda: roster.ready_groups)
        roster.subscribe(self._turnstile.wake)
        roster.subscribe(self._quarantine.wake)

    # -- what vLLM's app asks for -------------------------------------------------------

    @property
    @override
    def dead_error(self) -> BaseException:
        """What to raise when errored."""
        return visible(NotReady("no group is ready"))

    @property
    def inflight_requests(self) -> int:
        """Requests that callers have not finished yet."""
        return self._inflight

    @override
    async def get_supported_tasks(self) -> tuple[SupportedTask, ...]:
        """Text generation alone."""
        return _TASKS

    @override
    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Refuse before any work is done, while an HTTP status can still be sent.

        Having no ready group is no reason: requests wait for one until their deadline.

        Raises:
            InvalidRequest: it asks for more choices than one request may.
            Overloaded: this router holds as many requests as it may, or the turnstile says so.
        """
        del request_id
        limit = self._settings.router.max_inflight_requests
        choices = self._settings.router.max_choices
        try:
            if n > choices:
                raise InvalidRequest(f"n must be at most {choices}, got {n}")
            if self._inflight >= limit:
                raise Overloaded(f"this router holds {limit} requests already; try again later")
            self._turnstile.check(caller())
        except ServingError as error:
            metrics.REQUESTS.labels(status_of(error).reason).inc()
            raise visible(error) from error

    @override
    async def check_health(self) -> None:
        """Return if a group is ready.

        Raises:
            NotReady: none is.
        """
        if not self.roster.ready:
            raise visible(NotReady("no group is ready"))

    @override
    def generate(
        self,
        prompt: EngineCoreRequest | PromptType | EngineInput | AsyncGenerator[StreamingInput, None],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        kv_hints: KvHintsEnvelope | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate on a rank; closing the generator aborts the request there at once.

        The deadline is taken here, in the caller's context, not when the first output is
        asked for: that may happen in another task.

        Raises:
            VLLMValidationError: (from the first step) the request is invalid.
            ServingError: (from the steps) anything else; see ``serving.errors``.
        """
        now = self._clock.monotonic()
        deadline = now + self._settings.router.request_timeout
        if (asked := deadline_var.get()) is not None:
            deadline = min(deadline, asked)
        del priority  # the body's own, which any client could set: the caller's key decides
        who = caller()
        work = link_pb2.Submit(
            request_id=f"{self.roster.router_id}-{next(self._numbers):x}-{request_id}",
            priority=self._engine_priority(who),
            trace_headers=dict(trace_headers or {}),
        )
        if reasoning_ended is not None:
            work.reasoning_ended = reasoning_ended
        if reasoning_parser_kwargs is not None:
            work.reasoning_parser_kwargs = msgspec.msgpack.encode(reasoning_parser_kwargs)
        unsupported = {
            "a streamed prompt": isinstance(prompt, AsyncGenerator),
            "a prompt in the engine's own form": isinstance(prompt, EngineCoreRequest),
            "a LoRA adapter": lora_request is not None,
            "a data-parallel rank (the router picks one)": data_parallel_rank is not None,
            "KV hints": kv_hints is not None,
        }
        if session_id is not None and who.session_id is None:
            who = replace(who, session_id=session_id)
        return self._generate(
            prompt,
            sampling_params,
            request_id,
            work,
            caller=who,
            deadline=deadline,
            unsupported=[name for name, asked_for in unsupported.items() if asked_for],
            tokenization_kwargs=tokenization_kwargs,
            prompt_text=prompt_text,
        )

    def _engine_priority(self, who: Caller) -> int:
        """Return what the engine orders by where it does; vLLM's default takes none but 0."""
        by_priority = self.vllm_config.scheduler_config.policy == "priority"
        return int(who.priority) if by_priority else 0

    async def _generate(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        work: link_pb2.Submit,
        *,
        caller: Caller,
        deadline: float,
        unsupported: list[str],
        tokenization_kwargs: dict[str, Any] | None,
        prompt_text: str | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if unsupported:
            raise visible(Unsupported(f"{', '.join(unsupported)} cannot be served here"))
        self.check_admission(params.n, request_id)
        self._inflight += 1
        try:
            with counted(self._clock, caller.journal.arrived_at):
                prepared = await self._prepare(
                    prompt,
                    params,
                    request_id,
                    work,
                    caller=caller,
                    deadline=deadline,
                    tokenization_kwargs=tokenization_kwargs,
                    prompt_text=prompt_text,
                )
                request = FleetRequest(
                    prepared,
                    placer=self._placer,
                    turnstile=self._turnstile,
                    quarantine=self._quarantine,
                    roster=self.roster,
                    settings=self._settings.fleet,
                    clock=self._clock,
                    tenants=self._tenants,
                )
                with request.running():
                    await request.begin()
                    finished = False
                    while not finished:
                        output = await request.next()
                        finished = output.finished
                        yield output
        finally:
            self._inflight -= 1

    async def _prepare(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        work: link_pb2.Submit,
        *,
        caller: Caller,
        deadline: float,
        tokenization_kwargs: dict[str, Any] | None,
        prompt_text: str | None,
    ) -> Prepared:
        """Check and normalise the request with vLLM's own code, and fill in ``work``."""
        arguments: dict[str, Any] = {
            "supported_tasks": _TASKS,
            "tokenization_kwargs": tokenization_kwargs,
            "trace_headers": dict(work.trace_headers),
            "priority": work.priority,
        }
        if params.structured_outputs is not None:
            # Reading a grammar takes up to seconds, for nearly all of which the GIL is free.
            loop = asyncio.get_running_loop()
            process = self.input_processor.process_inputs
            call = functools.partial(process, request_id, prompt, params, **arguments)
            request = await loop.run_in_executor(self._grammars, call)
        elif isinstance(prompt, dict) and "type" in prompt:
            request = self.input_processor.process_inputs(request_id, prompt, params, **arguments)
        else:
            # Tokenizing must not block the event loop.
            request = await self.input_processor.process_inputs_async(
                request_id, prompt, params, **arguments
            )
        unsupported = {
            "multi-modal input": request.mm_features,
            "prompt embeddings": request.prompt_embeds is not None,
            "cache_salt": request.cache_salt,
            "prompt_logprob_token_ids": params.prompt_logprob_token_ids is not None,
            # vLLM's engine trusts their form: a text in their place makes it fail.
            "KV or encoder-cache transfer": _TRANSFERS & (params.extra_args or {}).keys(),
        }
        if asked_for := [name for name, given in unsupported.items() if given]:
            raise visible(Unsupported(f"{', '.join(asked_for)} cannot be served here"))
        text, _, _ = extract_prompt_components(self.model_config, prompt)
        prompt_ids = list(request.prompt_token_ids or ())
        checked: SamplingParams = request.sampling_params
        transcript = Transcript(
            request_id, prompt_ids, checked, params.output_kind, prompt_text or text
        )
        # Deltas travel whatever the caller wants: the transcript gives them out in his kind.
        checked.output_kind = RequestOutputKind.DELTA
        if needs_seed(checked):
            checked.seed = self._random.getrandbits(32)
        work.prompt_token_ids.extend(prompt_ids)
        work.sampling_params = msgspec.msgpack.encode(checked)
        return Prepared(request_id, work, checked, transcript, caller, deadline)

    @override
    def shutdown(self, timeout: float | None = None) -> None:
        """Free the threads. The link server has its own stop."""
        del timeout
        self._grammars.shutdown(wait=False, cancel_futures=True)
        self.renderer.shutdown()
