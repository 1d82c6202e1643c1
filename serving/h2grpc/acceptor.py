"""Accepts connections and starts TLS handshakes, a few per iteration of the event loop.

asyncio's servers accept the whole backlog, possibly thousands of connections, in one iteration and
answer the first TLS message of each. Each handshake takes up to several milliseconds, during which
no other connection is served. New connections also use at most half of the event loop's time:
clients can open and close thousands of them per second.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable

import structlog

from serving.h2grpc.turns import TURN

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BACKLOG = 2048
"""Length of the kernel's queue of connections waiting to be accepted."""
_MAX_ACCEPTS = 8
"""Maximum number of connections accepted per event-loop iteration."""
_MAX_HANDSHAKE_STARTS = 2
"""Maximum number of TLS handshakes started per event-loop iteration; each computes a signature."""
_STEPS = 4
"""Number of event-loop iterations that a short connection takes: accept, connect, read, close."""
_MAX_HANDSHAKES = 256
"""Maximum number of handshakes in progress; beyond that, the oldest is cancelled."""
_HANDSHAKE_TIMEOUT = 20.0
"""Time for a client to complete the handshake, half of it for its first byte, seconds."""
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE = 1.0
"""Pause before accepting again when file descriptors or memory run out, seconds."""


class Acceptor:
    """Accepts connections on one socket."""

    def __init__(
        self,
        listener: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Initialize the acceptor; ``start`` begins listening.

        Args:
            listener: Bound socket; ``close`` closes it.
            protocol_factory: Factory for the protocol of a connection.
            tls: TLS context. None means plaintext.
            clock: Measures the time that new connections take, seconds.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol_factory = protocol_factory
        self._tls = tls
        self._before_hello: dict[socket.socket, asyncio.TimerHandle] = {}
        """TLS clients that have not sent anything yet, with their timeouts."""
        self._handshake_queue: deque[socket.socket] = deque()
        """TLS clients waiting for their handshake to start."""
        self._start_scheduled = False
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """Tasks that complete the handshake and create the protocol, oldest first."""
        self._pause_timer: asyncio.TimerHandle | None = None
        """Set while no connections are accepted and no handshakes are started."""
        self._clock = clock
        self._spent = 0.0
        """Time spent on new connections, less the time elapsed since, seconds."""
        self._measured_at = 0.0
        self._measuring = False

    def start(self) -> None:
        """Start listening."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop listening and close the connections that have no protocol yet."""
        if self._listener.fileno() < 0:
            return
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for client in tuple(self._before_hello):
            self._drop_client(client)
        for client in self._handshake_queue:
            client.close()
        self._handshake_queue.clear()
        for task in tuple(self._handshakes):
            task.cancel()

    @property
    def waiting(self) -> int:
        """Number of accepted connections that have no protocol yet."""
        return len(self._before_hello) + len(self._handshake_queue) + len(self._handshakes)

    def _accept(self) -> None:
        if self._measuring:
            return
        self._measure()
        for _ in range(_MAX_ACCEPTS):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause_after(error)
                    return
                continue  # the client has already closed it
            client.setblocking(False)
            if self._tls is None:
                self._start_connecting(client)
            else:
                timer = self._loop.call_later(_HANDSHAKE_TIMEOUT / 2, self._drop_client, client)
                self._before_hello[client] = timer
                self._loop.add_reader(client, self._hello_arrived, client)

    def _pause_after(self, error: OSError) -> None:
        log.error("cannot accept connections", reason=str(error), pause_s=_ACCEPT_PAUSE)
        self._pause(_ACCEPT_PAUSE)

    def _pause(self, seconds: float) -> None:
        """Pause accepting connections and starting handshakes."""
        self._loop.remove_reader(self._listener)
        self._pause_timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        self._loop.add_reader(self._listener, self._accept)
        self._schedule_handshakes()

    def _measure(self) -> None:
        """Measure how long the next ``_STEPS`` event-loop iterations take.

        The loop does not block in between, since a callback is always ready.
        """
        self._measuring = True
        self._loop.call_soon(self._step, self._clock(), _STEPS)

    def _step(self, began: float, steps: int) -> None:
        if steps > 1:
            self._loop.call_soon(self._step, began, steps - 1)
            return
        self._measuring = False
        now = self._clock()
        self._spent = max(self._spent - (began - self._measured_at), 0.0) + now - began
        self._measured_at = now
        if self._spent > TURN and self._pause_timer is None and self._listener.fileno() >= 0:
            self._pause(self._spent)

    def _drop_client(self, client: socket.socket) -> None:
        self._stop_watching(client)
        client.close()

    def _stop_watching(self, client: socket.socket) -> None:
        self._before_hello.pop(client).cancel()
        self._loop.remove_reader(client)

    def _hello_arrived(self, client: socket.socket) -> None:
        """Queue the client for its handshake."""
        self._stop_watching(client)
        self._handshake_queue.append(client)
        self._schedule_handshakes()

    def _schedule_handshakes(self) -> None:
        if self._handshake_queue and not self._start_scheduled and self._pause_timer is None:
            self._start_scheduled = True
            self._loop.call_soon(self._start_handshakes)

    def _start_handshakes(self) -> None:
        self._start_scheduled = False
        if self._pause_timer is not None:
            return
        if not self._measuring:
            self._measure()
        for _ in range(min(_MAX_HANDSHAKE_STARTS, len(self._handshake_queue))):
            self._start_connecting(self._handshake_queue.popleft())
        while len(self._handshakes) > _MAX_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        self._schedule_handshakes()

    def _start_connecting(self, client: socket.socket) -> None:
        task = self._loop.create_task(self._connect(client))
        self._handshakes[task] = None
        task.add_done_callback(self._connecting_done)

    def _connecting_done(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol_factory,
                client,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_TIMEOUT / 2,
            )
        except (OSError, TimeoutError) as error:  # including TLS errors
            log.debug("connection setup failed", reason=str(error))
            client.close()
        except asyncio.CancelledError:
            client.close()
            raise
