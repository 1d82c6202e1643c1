"""The link without sockets: an in-memory call and server context, with faults.

Messages are serialized as on the wire and arrive in order after a delay; the bytes in flight in a
direction are limited. A wire can be cut (both ends see it immediately), frozen (nothing passes, and
no end sees an error until the keepalive timeout) or slowed. Only the parts of gRPC that the link
uses are implemented; ``test_over_sockets.py`` runs the same cluster over real gRPC.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

from serving.h2grpc.client import CallError, ClientCall
from serving.h2grpc.context import EOF
from serving.link.v1 import link_pb2
from tests.faults.simulation import process_var

SUFFIX = ".sim"
"""Suffix of host names that are in memory."""
_WINDOW = 64 * 1024
"""Bytes in flight in one direction before a write waits."""
_INSTANT = 1e-6
"""Tolerance, seconds; rounding limits the precision of the loop's own timers."""

Handler = Callable[[Any, Any], Awaitable[None]]


class _Signal:
    """Wakes all waiters, also periodically without a call."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, lambda: future.done() or future.set_result(None))
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if timer is not None:
                timer.cancel()


class Pipe:
    """One direction of a wire."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.frozen = False
        self.broken = False
        self.ended = False
        self._queue: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = _Signal()

    def stir(self) -> None:
        """Wake both ends."""
        self._changed.fire()

    async def send(self, data: bytes) -> bool:
        """Send a message; return False if the wire is broken."""
        while self._bytes >= _WINDOW and not self.broken:
            await self._changed.wait()
        if self.broken:
            return False
        self._queue.append((asyncio.get_running_loop().time() + self.delay, data))
        self._bytes += len(data)
        self._changed.fire()
        return True

    async def receive(self) -> bytes | None:
        """Return the next message; ``None`` at the end, orderly or not (see ``broken``)."""
        while not self.broken:
            if self._queue and not self.frozen:
                due, data = self._queue[0]
                early = due - asyncio.get_running_loop().time()
                if early <= _INSTANT:
                    self._queue.popleft()
                    self._bytes -= len(data)
                    self._changed.fire()
                    return data
                await self._changed.wait(early)
            elif self.ended and not self._queue:
                return None
            else:
                await self._changed.wait()
        return None


class Wire:
    """One Join stream between a rank's process and a router's."""

    def __init__(self, client: str, server: str, delay: float, keepalive: float) -> None:
        self.client = client
        self.server = server
        self.up, self.down = Pipe(delay), Pipe(delay)
        self.why = ""
        self._keepalive = keepalive
        self._timer: asyncio.TimerHandle | None = None
        self.on_break: Callable[[], None] = lambda: None

    @property
    def broken(self) -> bool:
        return self.up.broken

    def cut(self, why: str) -> None:
        """Break the connection; both ends see an error."""
        if self.broken:
            return
        self.why = why
        self._stop_timer()
        for pipe in (self.up, self.down):
            pipe.broken = True
            pipe.stir()
        self.on_break()

    def freeze(self, *, up: bool = True, down: bool = True) -> None:
        """Drop all messages, undetected until the keepalive timeout."""
        self.up.frozen = self.up.frozen or up
        self.down.frozen = self.down.frozen or down
        if self._timer is None and not self.broken:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(
                2 * self._keepalive, self.cut, "keepalive watchdog timeout"
            )

    def thaw(self) -> None:
        """Deliver the queued messages."""
        self._stop_timer()
        for pipe in (self.up, self.down):
            pipe.frozen = False
            pipe.stir()

    def slow(self, delay: float) -> None:
        """Delay messages by ``delay`` seconds."""
        self.up.delay = self.down.delay = delay

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Network:
    """All listeners, and the wires between processes."""

    def __init__(self, *, delay: float = 0.0005, keepalive: float = 5.0) -> None:
        self.wires: list[Wire] = []
        self._delay = delay
        self._keepalive = keepalive
        self._listening: dict[str, tuple[str, Handler]] = {}

    def listen(self, address: str, handler: Handler) -> None:
        """Serve ``handler`` (a servicer's Join) in the current process."""
        self._listening[address] = (process_var.get(), handler)

    def close(self, address: str) -> None:
        """Refuse new connections to an address."""
        self._listening.pop(address, None)

    def of(self, process: str) -> list[Wire]:
        """Return the unbroken wires with an end in ``process``."""
        self.wires = [wire for wire in self.wires if not wire.broken]
        return [wire for wire in self.wires if process in {wire.client, wire.server}]

    def connect(self, address: str) -> tuple[Wire, asyncio.Task[None]] | None:
        """Connect from the current process; return ``None`` without a listener."""
        found = self._listening.get(address)
        if found is None:
            return None
        process, handler = found
        wire = Wire(process_var.get(), process, self._delay, self._keepalive)
        self.wires.append(wire)
        token = process_var.set(process)
        try:
            call = asyncio.get_running_loop().create_task(_serve(wire, handler))
        finally:
            process_var.reset(token)
        wire.on_break = call.cancel
        return wire, call


async def _serve(wire: Wire, handler: Handler) -> None:
    try:
        await handler(None, _ServerContext(wire))
    finally:
        wire.down.ended = True
        wire.down.stir()
        wire.up.ended = True
        wire.up.stir()


class _ServerContext:
    """The part of ``grpc.aio.ServicerContext`` that servicers use."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def peer(self) -> str:
        return f"memory:{self._wire.client}"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def read(self) -> Any:
        data = await self._wire.up.receive()
        return EOF if data is None else link_pb2.RankMessage.FromString(data)

    async def write(self, message: link_pb2.RouterMessage) -> None:
        if not await self._wire.down.send(message.SerializeToString()):
            raise asyncio.CancelledError


class _Call:
    """The client's end of a stream: the part of ``ClientCall`` that ranks use."""

    def __init__(self, connected: tuple[Wire, asyncio.Task[None]] | None) -> None:
        self._wire, self._server = connected or (None, None)
        self._living()

    async def write(self, message: bytes) -> None:
        wire = self._living()
        if wire.down.ended or not await wire.up.send(message):
            raise self._error(wire.why or "the call has ended")

    async def read(self) -> bytes | None:
        wire = self._living()
        data = await wire.down.receive()
        if data is None and wire.broken:
            raise self._error(wire.why)
        return data

    def done_writing(self) -> None:
        wire = self._living()
        wire.up.ended = True
        wire.up.stir()

    def cancel(self) -> None:
        if self._wire is not None:
            self._wire.cut("the rank closed the stream")

    def _living(self) -> Wire:
        if self._wire is None:
            raise self._error("connection refused")
        if self._wire.broken:
            raise self._error(self._wire.why)
        return self._wire

    @staticmethod
    def _error(why: str) -> CallError:
        return CallError("UNAVAILABLE", why)


@contextlib.contextmanager
def patched_calls(network: Network) -> Iterator[None]:
    """Connect ranks to in-memory hosts through ``network``."""
    real = ClientCall.open

    async def opened(host: str, port: int, *args: Any) -> Any:
        if host.endswith(SUFFIX):
            return _Call(network.connect(f"{host}:{port}"))
        return await real(host, port, *args)

    with mock.patch.object(ClientCall, "open", opened):
        yield
