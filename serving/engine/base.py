"""The engine interface, in terms of the link's messages.

The implementations, ``vllm_engine.VllmEngine`` and ``fake.engine.FakeEngine``, both pass
tests/unit/engine/test_engine_contract.py.
"""

from collections.abc import Callable
from typing import Protocol

from serving.engine.kv_mirror import KvMirror
from serving.link.v1 import link_pb2

Deliver = Callable[[link_pb2.Delta], None]
"""Function that receives the deltas of one request; all deltas of a step arrive in one iteration of
the event loop."""


class RunningRequest(Protocol):
    """A request that has been submitted to an engine."""

    def cancel(self) -> None:
        """Abort the request and free its KV cache; no delta follows. Safe to call at any time."""
        ...

    def complete(self, index: int) -> bool:
        """End choice ``index``, because its output is complete; no further delta of it follows.

        Returns:
            Whether the request has ended because all its choices have ended.
        """
        ...


class Engine(Protocol):
    """Generates tokens for many concurrent requests."""

    async def start(self) -> None:
        """Load the model and warm up; return when the engine can generate.

        Raises:
            SettingsError: The engine rejects its arguments.
            EngineError: The engine could not start.
        """
        ...

    def describe(self) -> link_pb2.Hello:
        """Return a Hello with engine_version, model, fingerprint, capacity and experts set.

        The rank server sets the other fields (group, epoch, rank, node). Call after ``start``.
        """
        ...

    @property
    def kv_mirror(self) -> KvMirror | None:
        """Content of the prefix cache. None without a cache, or if the engine does not report it.

        Available after ``start``; the same object until ``shutdown``.
        """
        ...

    def submit(self, request: link_pb2.Submit, deliver: Deliver, /) -> RunningRequest:
        """Start a request; its deltas are passed to ``deliver``.

        The last delta is ``finished``, unless the request is cancelled or completed. An invalid
        request ends with ``error`` set (INVALID_REQUEST), never with an exception, and does not
        affect other requests. Deltas carry only token ids; the router applies stop strings.
        ``deliver`` sets the deltas' request id, and may be called before the method returns.
        """
        ...

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return the current load with health; cheap enough to call several times a second."""
        ...

    async def check_health(self) -> None:
        """Check that the engine makes progress.

        Raises:
            EngineError: The engine failed, or has had requests without completing a step for
                ``fleet.stall_timeout``.
        """
        ...

    async def shutdown(self) -> None:
        """Stop the engine and all its child processes. Safe to call twice."""
        ...


class NotRunning:
    """The handle of a request that an engine did not accept."""

    def cancel(self) -> None:
        """Do nothing."""

    def complete(self, index: int) -> bool:
        """Do nothing: the request has ended."""
        del index
        return True


NOT_RUNNING = NotRunning()
