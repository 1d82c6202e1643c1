"""grpcio with threads."""

import asyncio
import contextlib
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.integration.h2grpc.clients.common import Call, Client, Outcome
from tests.integration.h2grpc.clients.grpcio_aio import OPTIONS, credentials


class Grpcio(Client):
    """Synchronous calls of grpcio, with iterators for streams of requests."""

    def __init__(self, target: dict[str, Any]) -> None:
        super().__init__(target)
        self._threads = ThreadPoolExecutor(16)

    def open(self) -> Any:
        given = credentials(self.tls)
        if given is None:
            return grpc.insecure_channel(self.target["address"], options=OPTIONS)
        return grpc.secure_channel(self.target["address"], given, options=OPTIONS)

    async def close(self, channel: Any) -> None:
        await asyncio.to_thread(channel.close)

    async def perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._perform, channel, call, outcome)

    def _perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        method = getattr(channel, call.kind)(
            call.path, call.request_class.SerializeToString, call.answer_class.FromString
        )
        to_send: queue.SimpleQueue[Any] = queue.SimpleQueue()
        given = iter(to_send.get, None) if call.streams_up else call.requests[0]
        more = {
            "timeout": call.timeout,
            "metadata": call.metadata,
            "compression": grpc.Compression.Gzip if call.compressed else None,
        }
        if call.kind.endswith("stream"):
            made = method(given, **more)
        elif call.cancel_after is not None:
            made = method.future(given, **more)
        else:
            self._blocking(method, given, more, to_send, call, outcome)
            return
        try:
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                self._talk(made, to_send, call, outcome)
        finally:
            to_send.put(None)
        self._ended(made, call, outcome)

    def _ended(self, made: Any, call: Call, outcome: Outcome) -> None:
        outcome.code = made.code().name
        outcome.details = made.details() or ""
        if call.cancel_after is None:
            outcome.keep(made.initial_metadata(), made.trailing_metadata())

    def _blocking(
        self,
        method: Any,
        given: Any,
        more: dict[str, Any],
        to_send: "queue.SimpleQueue[Any]",
        call: Call,
        outcome: Outcome,
    ) -> None:
        if call.streams_up:
            for each in call.requests if call.unfinished else (*call.requests, None):
                to_send.put(each)
        try:
            answer, made = method.with_call(given, **more)
        except grpc.RpcError as error:
            made = error
        else:
            outcome.got(answer)
        finally:
            to_send.put(None)
        self._ended(made, call, outcome)

    def _talk(
        self, made: Any, to_send: "queue.SimpleQueue[Any]", call: Call, outcome: Outcome
    ) -> None:
        if call.streams_up:
            for number, request in enumerate(call.requests):
                to_send.put(request)
                if call.lockstep:
                    for _ in range(call.answers[number]):
                        outcome.got(next(made))
                if call.cancel_after is not None and len(outcome.replies) >= call.cancel_after:
                    made.cancel()
                    break
            if not call.unfinished:
                to_send.put(None)
        if call.kind.endswith("unary"):
            outcome.got(made.result())
        else:
            for answer in made:
                outcome.got(answer)
