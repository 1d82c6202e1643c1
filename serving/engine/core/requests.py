"""The requests running on an engine core: their inputs, and the deltas of each step."""

import asyncio
import logging
from collections import deque
from copy import copy

from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest

from serving.engine.base import Deliver
from serving.engine.codec import (
    DEAD_END,
    decode_params,
    decode_parser_kwargs,
    encode_end,
    encode_logprobs,
    error_delta,
    failure_delta,
)
from serving.engine.core.client import CoreClient
from serving.engine.core.statistics import RequestStatistics, StepStatistics
from serving.errors import Overloaded
from serving.link.v1 import link_pb2

_log = logging.getLogger(__name__)
_Code = link_pb2.RequestError
_TASKS = ("generate",)


class _Choice:
    """One choice of a request, which is one request to the engine core."""

    __slots__ = ("core_id", "index", "logprobs", "owner", "statistics")

    def __init__(
        self,
        owner: "CoreRequest",
        index: int,
        request: EngineCoreRequest,
        parent: ParentRequest | None,
    ) -> None:
        params = request.sampling_params
        assert params is not None
        self.owner = owner
        self.index = index
        self.core_id = request.request_id
        self.statistics = RequestStatistics(request, parent)
        self.logprobs: LogprobsProcessor | None = None
        if params.num_logprobs is not None or params.prompt_logprobs is not None:
            # No tokenizer is needed, because routers decode the candidates.
            self.logprobs = LogprobsProcessor.from_new_request(None, request)


class CoreRequest:
    """A router's request on the engine core, with one or more choices."""

    __slots__ = ("_requests", "begun", "choices", "deliver", "request_id", "structured")

    def __init__(self, requests: "CoreRequests", request_id: str, deliver: Deliver) -> None:
        self._requests = requests
        self.request_id = request_id
        self.deliver = deliver
        self.choices: dict[int, _Choice] = {}
        """Choices that have not ended, by index."""
        self.begun = False
        """Whether a delta has been delivered."""
        self.structured = False
        """Whether a grammar constrains the output."""

    def cancel(self) -> None:
        """Abort the request; see the protocol."""
        self._requests.abort(self, tuple(self.choices))

    def complete(self, index: int) -> bool:
        """End a choice whose output is complete; see the protocol."""
        choice = self.choices.get(index)
        if choice is not None:
            self._requests.complete(choice)
        return not self.choices


class CoreRequests:
    """Runs requests on an engine core, and delivers all output of a step together."""

    def __init__(self, core: CoreClient, statistics: StepStatistics) -> None:
        """Start without requests; see :meth:`start`.

        Args:
            core: The engine.
            statistics: Records vLLM's metrics.
        """
        self._core = core
        self._statistics = statistics
        self._choices: dict[str, _Choice] = {}
        self._numbers = 0
        # Requests and aborts in the order in which the engine must receive them.
        self._inputs: deque[EngineCoreRequest | str] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = False
        scheduler = core.vllm_config.scheduler_config
        self._limits = scheduler.max_num_queued_reqs, scheduler.max_num_queued_tokens

    @property
    def unfinished(self) -> int:
        """Number of choices that have not ended."""
        return len(self._choices)

    @property
    def failed(self) -> bool:
        """Whether the engine has failed and accepts no more requests."""
        return self._failed or self._core.dead

    def start(self) -> None:
        """Start the tasks that send inputs and receive outputs."""
        self._tasks = [
            asyncio.create_task(self._send(), name="engine-core-inputs"),
            asyncio.create_task(self._receive(), name="engine-core-outputs"),
        ]

    async def stop(self) -> None:
        """Stop the tasks, and fail all running requests. Safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._fail(EngineDeadError())

    def submit(
        self, work: link_pb2.Submit, deliver: Deliver, lora: LoRARequest | None = None
    ) -> CoreRequest:
        """Validate a request and queue it for the engine; see the protocol.

        Args:
            work: The request.
            deliver: Receives its deltas.
            lora: The request's adapter, which the engine has loaded. None: no adapter.
        """
        request = CoreRequest(self, work.request_id, deliver)
        if self.failed:
            deliver(error_delta(work.request_id, _Code.ENGINE_FAILED, "the engine is not running"))
            return request
        try:
            self._add(request, work, lora)
        except Exception as error:  # noqa: BLE001  every failure ends the request with a delta
            deliver(failure_delta(work.request_id, error, alone=True))
        return request

    def abort(self, request: CoreRequest, indexes: tuple[int, ...]) -> None:
        """End choices of a request without further deltas."""
        for index in indexes:
            choice = request.choices.pop(index)
            del self._choices[choice.core_id]
            self._inputs.append(choice.core_id)
        self._wake.set()

    def complete(self, choice: _Choice) -> None:
        """End a choice that the router found to be complete, and count it as stopped."""
        self._statistics.finished(choice.statistics, FinishReason.STOP, None)
        self.abort(choice.owner, (choice.index,))

    def _add(self, request: CoreRequest, work: link_pb2.Submit, lora: LoRARequest | None) -> None:
        """Send the request's choices to the engine.

        Raises:
            Overloaded: The engine's queue is full.
            Exception: vLLM's error for an invalid request.
        """
        params = decode_params(work)
        core = self._core.input_processor.process_inputs(
            work.request_id,
            tokens_input(list(work.prompt_token_ids)),
            params,
            supported_tasks=_TASKS,
            trace_headers=(dict(work.trace_headers) or None) if self._core.traces else None,
            priority=work.priority,
            lora_request=lora,
        )
        if work.HasField("reasoning_ended"):
            core.reasoning_ended = work.reasoning_ended
        core.reasoning_parser_kwargs = decode_parser_kwargs(work)
        self._numbers += 1
        core.external_req_id = work.request_id
        # Unique even if a router reuses an id while the engine still knows the previous request.
        core.request_id = f"{work.request_id}-{self._numbers}"
        checked = core.sampling_params
        assert checked is not None
        self._check_room(checked.n)
        request.structured = checked.structured_outputs is not None
        if checked.n == 1:
            children, parent = [core], None
        else:
            children, parent = [], ParentRequest(core)
            for index in range(checked.n):
                child = copy(core)
                child.request_id, child.sampling_params = parent.get_child_info(index)
                children.append(child)
        for index, child in enumerate(children):
            choice = _Choice(request, index, child, parent)
            request.choices[index] = choice
            self._choices[child.request_id] = choice
        self._inputs.extend(children)
        self._wake.set()

    def _check_room(self, choices: int) -> None:
        """Apply vLLM's limits on queued requests and tokens, which are unset by default.

        Raises:
            Overloaded: A limit is reached.
        """
        requests, tokens = self._limits
        if requests is not None and len(self._choices) + choices > requests:
            raise Overloaded(f"the engine has {requests} requests (max_num_queued_reqs)")
        if tokens is not None:
            queued = sum(
                len(one.statistics.request.prompt_token_ids or ())
                for one in self._choices.values()
                if one.statistics.prefilling
            )
            if queued >= tokens:
                raise Overloaded(
                    f"the engine has {queued} queued tokens (max_num_queued_tokens is {tokens})"
                )

    async def _send(self) -> None:
        inputs = self._inputs
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                aborts: list[str] = []
                while inputs:
                    item = inputs.popleft()
                    if isinstance(item, str):
                        aborts.append(item)
                        continue
                    # An abort is sent after its own request, and may be sent after later ones.
                    if (choice := self._choices.get(item.request_id)) is not None:
                        await self._add_to_core(choice, item)
                if aborts:
                    await self._core.abort(aborts)
        except Exception as error:  # noqa: BLE001  reported to each request
            self._fail(error)

    async def _add_to_core(self, choice: _Choice, request: EngineCoreRequest) -> None:
        """Send a request; if it cannot be encoded, only this request fails.

        Raises:
            EngineDeadError: A process of the engine has ended.
        """
        try:
            await self._core.add(request)
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001  reported to the request
            owner = choice.owner
            owner.cancel()
            owner.deliver(failure_delta(owner.request_id, error, alone=True))

    async def _receive(self) -> None:
        core, step = self._core, self._step
        try:
            while True:
                step(await core.outputs())
        except Exception as error:  # noqa: BLE001  reported to each request
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End all requests with an error; the engine accepts no more."""
        self._failed = True
        running = {id(one.owner): one.owner for one in self._choices.values()}
        self._choices.clear()
        for request in running.values():
            request.choices.clear()
            request.deliver(failure_delta(request.request_id, error, alone=False))

    def _step(self, outputs: EngineCoreOutputs) -> None:
        """Deliver the output of one step, and record its statistics."""
        statistics, at = self._statistics, outputs.timestamp
        if outputs.outputs:
            step = statistics.begin()
            choices, count = self._choices, statistics.count
            for output in outputs.outputs:
                choice = choices.get(output.request_id)
                if choice is None:
                    continue  # the router ended it while the engine computed this step
                prefilling = choice.statistics.prefilling
                count(step, choice.statistics, output, at)
                if prefilling or choice.logprobs is not None or output.finish_reason is not None:
                    self._deliver(choice, output)
                    continue
                delta = link_pb2.Delta()
                message = delta.choices.add()
                message.token_ids.extend(output.new_token_ids)
                if choice.index:
                    message.index = choice.index
                choice.owner.deliver(delta)
        statistics.end(outputs)

    def _deliver(self, choice: _Choice, output: EngineCoreOutput) -> None:
        """Deliver an output that contains more than new tokens."""
        request = choice.owner
        delta = link_pb2.Delta(request_id=request.request_id)
        message = delta.choices.add(index=choice.index, token_ids=output.new_token_ids)
        first = not request.begun
        if first:
            request.begun = True
            delta.prompt_tokens = len(choice.statistics.request.prompt_token_ids or ())
            delta.cached_tokens = choice.statistics.cached_tokens
        if choice.logprobs is not None:
            prompt, sampled = encode_logprobs(choice.logprobs, output)
            if first:
                delta.prompt_logprobs.extend(prompt)
            message.logprobs.extend(sampled)
        if output.finish_reason is not None:
            del self._choices[choice.core_id], request.choices[choice.index]
            self._statistics.finished(choice.statistics, output.finish_reason, output)
            if output.finish_reason == FinishReason.ERROR and request.structured:
                # The engine is healthy: the grammar allows no further token.
                request.cancel()
                request.deliver(error_delta(request.request_id, _Code.INVALID_REQUEST, DEAD_END))
                return
            encode_end(message, output)
            delta.finished = not request.choices
        request.deliver(delta)
