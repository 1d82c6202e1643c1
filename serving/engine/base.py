"""What a rank needs from an engine; the link's own messages are the currency.

Two implementations: ``vllm_engine.VllmEngine`` and ``fake_engine.FakeEngine``. Both pass
tests/unit/engine/test_engine_contract.py.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from serving.engine.kv_mirror import KvMirror
from serving.link.v1 import link_pb2


class Engine(Protocol):
    """Generates tokens for many requests at once."""

    async def start(self) -> None:
        """Load and warm up; returns when the engine can generate.

        Raises:
            SettingsError: the engine refuses its arguments.
            EngineError: it could not start.
        """
        ...

    def describe(self) -> link_pb2.Hello:
        """Return a Hello with engine_version, model, fingerprint, capacity and experts set.

        The rank server adds the rest (group, epoch, rank, node). Only after ``start``.
        """
        ...

    @property
    def kv_mirror(self) -> KvMirror | None:
        """What the prefix cache holds; none if the engine has none or does not tell.

        Only after ``start``; the same object until ``shutdown``.
        """
        ...

    def generate(self, work: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        """Yield what the request gains, ending with exactly one ``finished`` delta.

        A bad request ends with ``error`` set (INVALID_REQUEST), never with an exception;
        other requests are not touched. Closing the iterator aborts the request and frees
        its KV cache.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request early. Unknown ids are ignored."""
        ...

    async def load(self) -> link_pb2.LoadSnapshot:
        """Return the current load with health; cheap enough to call several times a second."""
        ...

    async def check_health(self) -> None:
        """Return if the engine makes progress.

        Raises:
            EngineError: it failed, or has work and has not made a step for the stall
                time-out.
        """
        ...

    async def shutdown(self) -> None:
        """Stop; afterwards no child process is left. Safe to call twice."""
        ...
