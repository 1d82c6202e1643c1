"""Engines that generate with one task per request, instead of one for the whole engine."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec

from serving.engine.base import Deliver, RunningRequest
from serving.link.v1 import link_pb2

_log = logging.getLogger(__name__)


class _Params(msgspec.Struct):
    """The field of vLLM's SamplingParams that is used here, with vLLM's default."""

    n: int = 1


class GeneratingEngine(ABC):
    """Base class of engines that implement ``generate``, an iterator over a request's deltas.

    Closing the iterator aborts the request.
    """

    @abstractmethod
    def generate(self, request: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield the request's deltas, ending with a ``finished`` one."""

    def submit(self, request: link_pb2.Submit, deliver: Deliver) -> RunningRequest:
        """Start a request; see the engine protocol."""
        return GeneratingRequest(self.generate(request), request, deliver)


class GeneratingRequest:
    """A request with a task that reads its deltas."""

    def __init__(
        self,
        deltas: AsyncIterator[link_pb2.Delta],
        request: link_pb2.Submit,
        deliver: Deliver,
    ) -> None:
        """Start the task.

        Args:
            deltas: The request's deltas; closed when the request ends.
            request: The request.
            deliver: Receives the deltas.
        """
        self._deltas = deltas
        self._request = request
        self._deliver = deliver
        self._completed: set[int] = set()
        self._finished = False
        self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """Abort the request; see the protocol."""
        self._finished = True
        self._task.cancel()

    def complete(self, index: int) -> bool:
        """End a choice; see the protocol. It continues to run until all others are complete."""
        self._completed.add(index)
        params = msgspec.msgpack.decode(self._request.sampling_params, type=_Params)
        if len(self._completed) == params.n:
            self.cancel()
        return self._finished

    async def _run(self) -> None:
        try:
            async with contextlib.aclosing(self._deltas) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    if self._finished:
                        return
                    self._finished = delta.finished
                    self._deliver(delta)
        except Exception as error:  # noqa: BLE001  every failure ends the request with a delta
            _log.exception("the engine raised on a request")
            self._fail(f"{type(error).__name__} in the engine")
        else:
            self._fail("the engine ended the request without a final delta")

    def _fail(self, message: str) -> None:
        if not self._finished:
            self._finished = True
            error = link_pb2.RequestError(code=link_pb2.RequestError.ENGINE_FAILED, message=message)
            self._deliver(
                link_pb2.Delta(request_id=self._request.request_id, finished=True, error=error)
            )
