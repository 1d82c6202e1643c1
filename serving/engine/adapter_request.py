"""A request that names a LoRA adapter, while it waits and while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.engine.adapter_copies import HeldAdapter
from serving.engine.base import Deliver, RunningRequest
from serving.link.protocol import adapter_key
from serving.link.v1 import link_pb2

_Code = link_pb2.RequestError

Start = Callable[[link_pb2.Submit, Deliver, HeldAdapter], RunningRequest]
"""Starts a request whose adapter is loaded."""


@dataclass(slots=True, eq=False)
class AdapterSlot:
    """A slot that holds an adapter."""

    adapter: HeldAdapter
    users: int = 0
    leaving: bool = False
    """Whether it gets no more requests, because another adapter needs the slot."""


class AdapterRequest:
    """A request that names an adapter: waiting for it, or running."""

    __slots__ = (
        "_deliver",
        "_ended",
        "_on_end",
        "_request",
        "_running",
        "began_at",
        "key",
        "slot",
    )

    def __init__(
        self,
        request: link_pb2.Submit,
        deliver: Deliver,
        began_at: float,
        ended: Callable[["AdapterRequest"], None],
    ) -> None:
        """Begin to wait.

        Args:
            request: The request.
            deliver: Receives its deltas.
            began_at: Time on the rank's monotonic clock, seconds.
            ended: Called when the request has ended, unless by ``fail``.
        """
        self._request = request
        self._deliver = deliver
        self._running: RunningRequest | None = None
        self._ended = False
        self._on_end = ended
        self.slot: AdapterSlot | None = None
        """The slot that it uses. None if it is waiting or never ran."""
        self.began_at = began_at
        self.key = adapter_key(request.adapter.name, request.adapter.digest)

    @property
    def adapter(self) -> link_pb2.Adapter:
        """The adapter that the request names."""
        return self._request.adapter

    @property
    def name(self) -> str:
        """Name of the adapter."""
        return self._request.adapter.name

    def start(self, start: Start, slot: AdapterSlot) -> None:
        """Start the request on the engine."""
        self.slot = slot
        running = start(self._request, self._receive, slot.adapter)
        if not self._ended:
            self._running = running

    def fail(self, code: link_pb2.RequestError.Code, message: str) -> None:
        """End a waiting request with an error."""
        self._ended = True
        self._deliver(
            link_pb2.Delta(
                request_id=self._request.request_id,
                finished=True,
                error=_Code(code=code, message=message),
            )
        )

    def cancel(self) -> None:
        """Abort the request; see the protocol."""
        if self._running is not None:
            self._running.cancel()
        self._end()

    def complete(self, index: int) -> bool:
        """End a choice; see the protocol."""
        if self._running is not None and self._running.complete(index):
            self._end()
        return self._ended

    def _receive(self, delta: link_pb2.Delta) -> None:
        if delta.finished:
            self._end()
        self._deliver(delta)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._running = None
            self._on_end(self)
