"""The fleet as vLLM's ``EngineClient``, between vLLM's OpenAI app and the ranks.

``generate`` validates a request with vLLM's input processor before anything is sent, runs it on
the fleet, and yields ``RequestOutput`` exactly as an engine in this process would.
"""

import asyncio
import functools
import itertools
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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

from serving.admission.api import Admission
from serving.clock import Clock, SystemClock
from serving.errors import (
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    ServingError,
    Unsupported,
    status_of,
)
from serving.fleet.adapters import AdapterCatalog
from serving.fleet.membership import FleetMembership
from serving.h2grpc.turns import TaskTurns
from serving.link.v1 import link_pb2
from serving.request_context import RequestContext, current_context
from serving.requests.output_buffer import OutputBuffer
from serving.requests.poison import PoisonTracker
from serving.requests.reasoning_count import ReasoningMarks
from serving.requests.request import EngineRequest, FleetRequest, RequestServices
from serving.requests.resume import needs_seed
from serving.requests.token_timings import request_metrics
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.model_counters import PoolCounters
from serving.telemetry.tenants import TenantTokens
from serving.vllm_adapter.errors import as_vllm_error
from serving.vllm_adapter.reasoning_policy import limit_thinking
from serving.vllm_adapter.rendering import SHORT
from serving.vllm_adapter.unsupported_api import UnsupportedEngineApi

_TRANSFERS = {"kv_transfer_params", "ec_transfer_params"}
_TASKS: tuple[SupportedTask, ...] = ("generate",)
_GRAMMAR_THREADS = 2
"""Number of threads that compile schemas and grammars and tokenize ``bad_words``; the tokenizer has
a separate thread."""


_MAX_BAD_WORDS = 2**15
"""Maximum length of a request's ``bad_words`` in total, characters; vLLM limits only the number of
their tokenizations, 128."""
_FEW_WORDS = 8
"""Number of ``bad_words`` that are tokenized on the event loop; takes less than 0.5 ms."""


_MODEL_SHARE = 4
"""Maximum number of requests in flight of one of several models, as a multiple of the slots that
remain free: one model alone can use four fifths of the limit, which leaves slots for another."""


class RouterShare:
    """State shared by the clients of all models of a router."""

    def __init__(self, settings: Settings, ready: Callable[[], bool], models: int = 1) -> None:
        """Start without requests.

        Args:
            settings: All settings.
            ready: Returns whether any group of any model accepts requests.
            models: Number of models.
        """
        self.turns = TaskTurns()
        """Turns of requests with long steps, shared by both edges."""
        self.tenants = TenantTokens(settings.telemetry.tenant_labels)
        self.ready = ready
        self.inflight = 0
        """Number of requests in flight, over all models."""
        self._limit = settings.router.max_inflight_requests
        self._several = models > 1

    def check(self, own: int) -> None:
        """Check that a model with ``own`` requests in flight may start another.

        Raises:
            Overloaded: The router, or the model's share of it, is at its limit.
        """
        if self.inflight >= self._limit:
            raise Overloaded(
                f"this router already has {self._limit} requests in flight; try again later"
            )
        left = self._limit - self.inflight - 1
        if self._several and own and own + 1 > _MODEL_SHARE * left:
            raise Overloaded(
                f"this router already has {own} requests of this model in flight, and keeps room "
                f"for other models (router.max_inflight_requests is {self._limit}); try again later"
            )


class FleetClient(UnsupportedEngineApi):
    """Generates on the ranks of one model."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        membership: FleetMembership,
        admission: Admission,
        settings: Settings,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        *,
        share: RouterShare | None = None,
        poison: PoisonTracker | None = None,
        pools: Mapping[str, PoolCounters] | None = None,
        adapters: AdapterCatalog | None = None,
    ) -> None:
        """Load the tokenizer, and start the threads that compile grammars.

        Args:
            vllm_config: vLLM's configuration (``engine.arguments.router_vllm_config``).
            membership: Receives failures that requests detect, and reports readiness.
            admission: Places requests on ranks.
            settings: All settings.
            clock: Source of time; the system clock by default.
            rng: Draws seeds for requests that need one; the system's generator by default.
            share: State shared with the clients of other models. If omitted, this is the only
                model.
            poison: Suspects on the model's groups; initially none if omitted.
            pools: Counters of the model's pools, by name. If omitted, requests are not counted by
                pool.
            adapters: LoRA adapters of the model; default: none.
        """
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = renderer_from_config(vllm_config)
        self._share = share or RouterShare(settings, lambda: membership.ready)
        self.turns = self._share.turns
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        reasoning = vllm_config.reasoning_config
        self._limits_thinking = reasoning is not None and reasoning.enabled
        """Whether engines apply ``thinking_token_budget``; they need a reasoning parser."""
        self._grammars = ThreadPoolExecutor(_GRAMMAR_THREADS, "grammar")
        self.membership = membership
        self._adapters = adapters
        self._settings = settings
        self._clock = clock or SystemClock()
        self._admission = admission
        self._inflight = 0
        self._running: set[FleetRequest] = set()
        self._numbers = itertools.count(1)
        self._random = rng or random.SystemRandom()
        if poison is None:
            poison = PoisonTracker(lambda: membership.ready_groups)
            membership.subscribe(poison.wake)
        self._services = RequestServices(
            admission=admission,
            membership=membership,
            poison=poison,
            settings=settings.fleet,
            clock=self._clock,
            tenants=self._share.tenants,
            pools=pools or {},
            reasoning=ReasoningMarks.of(reasoning),
        )

    # -- called by vLLM's app -----------------------------------------------------------

    @property
    @override
    def dead_error(self) -> BaseException:
        """The error that vLLM raises while ``errored`` is true."""
        return as_vllm_error(NotReady("no group is ready"))

    @property
    def inflight_requests(self) -> int:
        """Number of the model's requests in flight, placed on a rank or waiting."""
        return self._inflight

    def requests(self) -> Iterator[FleetRequest]:
        """Return the requests that have been validated and have not ended, in arbitrary order."""
        return iter(self._running)

    def explain_all(self, *, on: bool) -> None:
        """Keep the scores of all routing decisions from now on, or only the requested ones."""
        self._services.explain_all = on

    @override
    async def get_supported_tasks(self) -> tuple[SupportedTask, ...]:
        """Return the supported tasks: only text generation."""
        return _TASKS

    def check_load(self) -> None:
        """Reject the current request if the router is overloaded, before any work is done for it.

        Called once per request: by the edge before it reads the body, or otherwise by vLLM's
        handlers through ``check_admission``. A fleet without ready groups is not overloaded:
        requests wait for a group until their deadline.

        Raises:
            Overloaded: The router is at its limit of requests in flight, the queue is full, or
                the tenant's quota is exhausted.
            NotReady: The router is shutting down.
        """
        context = current_context()
        with refusals():
            self._share.check(self._inflight)
            if context.yielding is None:
                self._admission.check(context)
        context.record.load_checked = True

    @override
    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Reject a request before its response starts; vLLM calls this once per request.

        Args:
            n: Number of choices over all prompts.
            request_id: Not used.

        Raises:
            InvalidRequest: ``n`` is above ``router.max_choices``.
            Overloaded: See ``check_load``, which is called unless the edge already did.
            NotReady: The router is shutting down.
        """
        del request_id
        with refusals():
            self._check_choices(n)
        if not current_context().record.load_checked:
            self.check_load()

    def _check_choices(self, n: int) -> None:
        choices = self._settings.router.max_choices
        if n > choices:
            raise InvalidRequest(f"n must be at most {choices}, got {n}")

    @override
    async def check_health(self) -> None:
        """Check that a group of any model is ready.

        Raises:
            NotReady: No group is ready.
        """
        if not self._share.ready():
            raise as_vllm_error(NotReady("no group is ready"))

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
        """Generate on the fleet; closing the generator aborts the request on its rank immediately.

        The request's context is read in this call, because the first output may be read in another
        task. See ``EngineClient`` for the arguments; ``priority`` is ignored, because the priority
        is determined by the API key, not by the body.

        Raises:
            VLLMValidationError: The request is invalid; raised when outputs are read.
            ServingError: Any other failure, see ``serving.errors``; raised when outputs are read.
        """
        del priority
        context = current_context()
        deadline = self._clock.monotonic() + self._settings.router.request_timeout
        if context.deadline is not None:
            # A request that yields to others can take as long as its batch.
            waits = context.yielding is not None
            deadline = context.deadline if waits else min(deadline, context.deadline)
        work = link_pb2.Submit(
            request_id=f"{self.membership.router_id}-{next(self._numbers):x}-{request_id}",
            priority=self._engine_priority(context),
            trace_headers=dict(trace_headers or {}),
        )
        if reasoning_ended is not None:
            work.reasoning_ended = reasoning_ended
        if reasoning_parser_kwargs is not None:
            work.reasoning_parser_kwargs = msgspec.msgpack.encode(reasoning_parser_kwargs)
        unsupported = {
            "a streamed prompt": isinstance(prompt, AsyncGenerator),
            "a preprocessed engine request": isinstance(prompt, EngineCoreRequest),
            "a data-parallel rank (the router chooses it)": data_parallel_rank is not None,
            "KV hints": kv_hints is not None,
        }
        unknown = "" if lora_request is None else self._name_adapter(work, lora_request)
        if session_id is not None and context.session_id is None:
            context = replace(context, session_id=session_id)
        return self._generate(
            prompt,
            sampling_params,
            request_id,
            work,
            context=context,
            deadline=deadline,
            unsupported=[name for name, given in unsupported.items() if given],
            unknown=unknown,
            tokenization_kwargs=tokenization_kwargs,
            prompt_text=prompt_text,
        )

    def _name_adapter(self, work: link_pb2.Submit, lora: LoRARequest) -> str:
        """Fill in the adapter that the request names.

        Returns:
            The adapter's name if it was unloaded after the request named it; otherwise empty.
        """
        adapter = None if self._adapters is None else self._adapters.get(lora.lora_name)
        if adapter is None:
            return str(lora.lora_name)
        work.adapter.name = adapter.name
        work.adapter.digest = adapter.digest
        work.adapter.folder = adapter.folder
        return ""

    def _engine_priority(self, context: RequestContext) -> int:
        """Return the request's priority in the engine; 0 if the engine schedules without one."""
        by_priority = self.vllm_config.scheduler_config.policy == "priority"
        return int(context.priority) if by_priority else 0

    async def _generate(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        work: link_pb2.Submit,
        *,
        context: RequestContext,
        deadline: float,
        unsupported: list[str],
        unknown: str,
        tokenization_kwargs: dict[str, Any] | None,
        prompt_text: str | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if unsupported:
            raise as_vllm_error(
                Unsupported(f"{', '.join(unsupported)} not supported by this router")
            )
        with refusals():
            if unknown:
                raise ModelNotFound(f"the adapter {unknown!r} does not exist")
            # Checked again, because a completion with several prompts calls this once per prompt.
            self._check_choices(params.n)
            self._share.check(self._inflight)
        self._inflight += 1
        self._share.inflight += 1
        request: FleetRequest | None = None
        try:
            context.record.prompts += 1
            if context.record.prompts > 1:
                # vLLM starts all prompts of a request in one iteration of the event loop.
                await self.turns.turn()
            with request_metrics(
                self._clock, context.record.arrived_at, unobserved=context.yielding is not None
            ):
                engine_request = await self._prepare(
                    prompt,
                    params,
                    request_id,
                    work,
                    context=context,
                    deadline=deadline,
                    tokenization_kwargs=tokenization_kwargs,
                    prompt_text=prompt_text,
                )
                request = FleetRequest(engine_request, self._services)
                self._running.add(request)
                with request.running():
                    await request.begin()
                    finished = False
                    while not finished:
                        output = await request.next()
                        finished = output.finished
                        yield output
        finally:
            self._inflight -= 1
            self._share.inflight -= 1
            if request is not None:
                self._running.discard(request)

    async def _prepare(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        work: link_pb2.Submit,
        *,
        context: RequestContext,
        deadline: float,
        tokenization_kwargs: dict[str, Any] | None,
        prompt_text: str | None,
    ) -> EngineRequest:
        """Validate and normalize a request with vLLM's input processor, and fill in ``work``.

        Raises:
            VLLMValidationError: The request is invalid.
            Unsupported: The request uses a feature that the fleet does not serve.
            PermissionDenied: The request sets a higher reasoning budget or effort than its key
                permits.
        """
        arguments: dict[str, Any] = {
            "supported_tasks": _TASKS,
            "tokenization_kwargs": tokenization_kwargs,
            "trace_headers": dict(work.trace_headers),
            "priority": work.priority,
        }
        if context.reasoning is not None and self._limits_thinking:
            try:
                limit_thinking(context.reasoning, params)
            except PermissionDenied as error:
                raise as_vllm_error(error) from error
        words = params.bad_words or ()
        length = sum(map(len, words))
        if length > _MAX_BAD_WORDS:
            raise as_vllm_error(
                InvalidRequest(f"bad_words has {length} characters, the limit is {_MAX_BAD_WORDS}")
            )
        if params.structured_outputs is not None or length > SHORT or len(words) > _FEW_WORDS:
            # Compiling a grammar can take seconds, mostly with the GIL released. Each bad word is
            # tokenized twice.
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
            # vLLM does not check the type of these, and a string makes the engine fail.
            "KV or encoder-cache transfer": _TRANSFERS & (params.extra_args or {}).keys(),
        }
        if found := [name for name, given in unsupported.items() if given]:
            raise as_vllm_error(Unsupported(f"{', '.join(found)} not supported by this router"))
        text, _, _ = extract_prompt_components(self.model_config, prompt)
        prompt_ids = list(request.prompt_token_ids or ())
        checked: SamplingParams = request.sampling_params
        buffer = OutputBuffer(
            request_id,
            prompt_ids,
            checked,
            params.output_kind,
            prompt_text or text,
            tokenizer=self.renderer.tokenizer,
            stream_interval=self.vllm_config.scheduler_config.stream_interval,
        )
        # Ranks always send deltas; the buffer returns outputs of the requested kind.
        checked.output_kind = RequestOutputKind.DELTA
        if needs_seed(checked):
            checked.seed = self._random.getrandbits(32)
        work.prompt_token_ids.extend(prompt_ids)
        work.sampling_params = msgspec.msgpack.encode(checked)
        return EngineRequest(request_id, work, checked, buffer, context, deadline)

    @override
    def shutdown(self, timeout: float | None = None) -> None:
        """Stop the threads that tokenize and that compile grammars."""
        del timeout
        self._grammars.shutdown(wait=False, cancel_futures=True)
        self.renderer.shutdown()


@contextmanager
def refusals() -> Iterator[None]:
    """Count rejections raised in the block, and convert them to vLLM errors."""
    try:
        yield
    except ServingError as error:
        metrics.REQUESTS.labels(status_of(error).reason).inc()
        raise as_vllm_error(error) from error
