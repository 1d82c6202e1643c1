"""LoRA adapters on a rank: which ones its engine holds, and the requests that wait for one.

An engine never sees a request before it has loaded the request's adapter, because vLLM's engine
core ends if it cannot. It loads from a private copy, which is deleted only after the adapter is
removed: engines drop idle adapters by themselves (vLLM does after each placeholder batch of a
group) and read them again in the middle of a step.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from typing import Protocol

from serving.clock import Clock
from serving.engine.adapter_copies import AdapterCopies, HeldAdapter
from serving.engine.adapter_request import AdapterRequest, AdapterSlot, Start
from serving.engine.base import Deliver
from serving.errors import EngineError
from serving.link.adapter_files import AdapterError
from serving.link.v1 import link_pb2
from serving.settings import ModelSettings

_log = logging.getLogger(__name__)
_Code = link_pb2.RequestError
NO_ADAPTERS = "this rank runs no adapters: set adapters or lora.folder of the model"
_FAILED_SECONDS = 2.0
"""Time for which further requests for an adapter that could not be loaded fail at once, seconds."""
_FAILED_LIMIT = 256
_REMOVE_TIMEOUT = 10.0
"""Time for the engine to remove an adapter, seconds; it answers between two steps."""


class AdapterLoader(Protocol):
    """The part of an engine that holds adapters."""

    async def load_adapter(self, adapter: HeldAdapter) -> None:
        """Load an adapter; returns soon if the engine holds it.

        Raises:
            AdapterError: The engine cannot load it; nothing has changed.
            EngineError: The engine is not running.
        """
        ...

    async def remove_adapter(self, adapter: HeldAdapter) -> None:
        """Remove an adapter that no request uses; ignored if the engine does not hold it.

        Raises:
            EngineError: The engine is not running.
        """
        ...


class RankAdapters:
    """The adapters of one engine. Not thread-safe: all calls come from one event loop."""

    def __init__(
        self, model: ModelSettings, loader: AdapterLoader, start: Start, clock: Clock
    ) -> None:
        """Start without adapters.

        Args:
            model: The model, with its adapters and their limits.
            loader: The engine.
            start: Starts a request on the engine.
            clock: Source of time.
        """
        self._model = model
        self.copies = AdapterCopies(model)
        self._loader = loader
        self._start = start
        self._clock = clock
        self._slots: OrderedDict[str, AdapterSlot] = OrderedDict()
        """Loaded adapters by key, the least recently requested one first."""
        self._waiting: deque[AdapterRequest] = deque()
        self._failed: dict[str, tuple[float, str]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._requests = self._loads = self._evictions = self._failures = 0

    @property
    def capacity(self) -> link_pb2.AdapterCapacity:
        """Limits of this rank, for Hello."""
        lora = self._model.lora
        return link_pb2.AdapterCapacity(slots=lora.slots, max_rank=lora.max_rank)

    def report(self) -> link_pb2.AdapterLoad:
        """Return the adapters that the engine holds, and the counters, for the rank's load."""
        return link_pb2.AdapterLoad(
            resident=[key for key, slot in self._slots.items() if not slot.leaving],
            requests_total=self._requests,
            loads_total=self._loads,
            evictions_total=self._evictions,
            failures_total=self._failures,
            waiting_requests=len(self._waiting),
        )

    def submit(self, request: link_pb2.Submit, deliver: Deliver) -> AdapterRequest:
        """Start a request that names an adapter, once the engine holds it.

        If the adapter cannot be loaded within ``lora.load_timeout``, only this request fails.
        """
        self._requests += 1
        found = AdapterRequest(request, deliver, self._clock.monotonic(), self._drop)
        slot = self._slots.get(found.key)
        failed = self._failed.get(found.key)
        if failed is not None and self._clock.monotonic() < failed[0]:
            found.fail(_Code.ADAPTER, failed[1])
        elif slot is not None and slot.users and not slot.leaving:
            self._begin(found, slot)
        else:
            # An adapter without requests may have been dropped: the engine loads it again.
            self._waiting.append(found)
            self.wake()
        return found

    def wake(self) -> None:
        """Look at the waiting requests again."""
        self._changed.set()
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._run(), name="adapters")

    async def stop(self) -> None:
        """Fail the waiting requests, and delete all copies. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        while self._waiting:
            self._waiting.popleft().fail(_Code.ENGINE_FAILED, "the engine is not running")
        await self.copies.close()

    # -- requests -----------------------------------------------------------------------

    def _begin(self, request: AdapterRequest, slot: AdapterSlot) -> None:
        slot.users += 1
        self._slots.move_to_end(request.key)
        request.start(self._start, slot)

    def _drop(self, request: AdapterRequest) -> None:
        """Forget a request that has ended."""
        if request.slot is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(request)
        else:
            request.slot.users -= 1
        self.wake()

    # -- loading ------------------------------------------------------------------------

    async def _run(self) -> None:
        """Serve the waiting requests, one adapter at a time."""
        try:
            while self._waiting:
                self._changed.clear()
                self._expire()
                request = self._next()
                if request is None:
                    await self._wait()
                    continue
                try:
                    await self._serve(request)
                except EngineError as error:
                    self._refuse(request.key, _Code.ENGINE_FAILED, str(error))
                except Exception as error:  # noqa: BLE001  an error of these requests alone
                    _log.exception("cannot load adapter %s", request.key)
                    self._refuse(request.key, _Code.ADAPTER, type(error).__name__)
        finally:
            for slot in self._slots.values():
                slot.leaving = False
            if self._task is asyncio.current_task():
                self._task = None

    def _next(self) -> AdapterRequest | None:
        """Return the first waiting request whose adapter is held, or can get a slot."""
        first: AdapterRequest | None = None
        for request in self._waiting:
            slot = self._slots.get(request.key)
            if slot is not None and not slot.leaving:
                return request
            first = first or request
        if first is not None and (slot := self._slots.get(first.key)) is not None:
            # Nobody waits for its slot any more.
            slot.leaving = False
            return first
        if first is None or len(self._slots) < self._model.lora.slots or self._idle() is not None:
            return first
        if not any(slot.leaving for slot in self._slots.values()):
            # Otherwise requests for the adapters in use could keep all slots for ever.
            next(iter(self._slots.values())).leaving = True
        return None

    def _idle(self) -> AdapterSlot | None:
        """Return the least recently used slot without requests."""
        return next((slot for slot in self._slots.values() if not slot.users), None)

    async def _wait(self) -> None:
        """Wait for a change, at most until the first deadline."""
        left = self._waiting[0].began_at + self._model.lora.load_timeout - self._clock.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0.001)):
                await self._changed.wait()

    def _expire(self) -> None:
        """Fail requests that have waited too long for a slot."""
        lora = self._model.lora
        now = self._clock.monotonic()
        while self._waiting and now - self._waiting[0].began_at >= lora.load_timeout:
            self._waiting.popleft().fail(
                _Code.OVERLOADED,
                f"all {lora.slots} adapter slots of the rank (lora.slots) were in use for "
                f"{lora.load_timeout:g} s (lora.load_timeout); try again later",
            )

    async def _serve(self, request: AdapterRequest) -> None:
        """Load the request's adapter, and start all requests that wait for it.

        Raises:
            EngineError: The engine is not running.
        """
        key, limit = request.key, self._model.lora.load_timeout
        slot = self._slots.get(key)
        if slot is None or slot.leaving:
            if len(self._slots) >= self._model.lora.slots:
                idle = self._idle()
                assert idle is not None, "_next returned a request without a slot"
                await self._remove(idle)
                self._evictions += 1
            slot = None
        try:
            async with asyncio.timeout(limit):
                if slot is None:
                    slot = await self._load(request)
                else:
                    await self._loader.load_adapter(slot.adapter)
        except (AdapterError, TimeoutError) as error:
            found = self._slots.get(key)
            if found is not None and not found.users:
                await self._remove(found)
            message = str(error) or f"it was not loaded within {limit:g} s (lora.load_timeout)"
            self._refuse(key, _Code.ADAPTER, f"adapter {request.name!r}: {message}")
            return
        slot.leaving = False
        for other in [each for each in self._waiting if each.key == key]:
            self._waiting.remove(other)
            self._begin(other, slot)

    async def _load(self, request: AdapterRequest) -> AdapterSlot:
        """Copy and check the files, and load the copy.

        Raises:
            AdapterError: The adapter cannot be loaded.
            EngineError: The engine is not running.
        """
        held = await self.copies.make(request.adapter)
        try:
            await self._loader.load_adapter(held)
        except BaseException:
            await self.copies.delete(held)
            raise
        self._loads += 1
        slot = self._slots[request.key] = AdapterSlot(held)
        return slot

    async def _remove(self, slot: AdapterSlot) -> None:
        """Remove an adapter without requests.

        Raises:
            EngineError: The engine is not running.
        """
        self._slots.pop(slot.adapter.key, None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMOVE_TIMEOUT):
                await self._loader.remove_adapter(slot.adapter)
        await self.copies.delete(slot.adapter)

    def _refuse(self, key: str, code: link_pb2.RequestError.Code, message: str) -> None:
        """Fail all requests that wait for an adapter."""
        if code == _Code.ADAPTER:
            self._failures += 1
            _log.warning("adapter not loaded: %s", message)
            if len(self._failed) >= _FAILED_LIMIT:
                self._failed.clear()
            self._failed[key] = (self._clock.monotonic() + _FAILED_SECONDS, message)
        for request in [each for each in self._waiting if each.key == key]:
            self._waiting.remove(request)
            request.fail(code, message)
