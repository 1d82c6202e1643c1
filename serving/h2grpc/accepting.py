"""Accepts connections and starts TLS handshakes, a few per iteration of the event loop.

asyncio's servers accept the whole backlog, possibly thousands of connections, in one iteration and
answer the first TLS message of each. Each handshake takes up to several milliseconds, during which
no other connection is served.
"""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BACKLOG = 2048
"""Length of the kernel's queue of connections waiting to be accepted."""
_AT_ONCE = 8
"""Maximum number of connections accepted per event-loop iteration."""
_HANDSHAKES_AT_ONCE = 2
"""Maximum number of TLS handshakes started per event-loop iteration; each computes a signature."""
_MOST_HANDSHAKES = 256
"""Maximum number of handshakes in progress; beyond that, the oldest is cancelled."""
_HANDSHAKE_TIMEOUT = 20.0
"""Time for a client to complete the handshake, half of it for its first byte, seconds."""
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST = 1.0
"""Pause before accepting again when file descriptors or memory run out, seconds."""


class Acceptor:
    """Accepts connections on one socket."""

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Initialize the acceptor; ``start`` begins listening.

        Args:
            listening: bound socket; ``close`` closes it.
            make: factory for the protocol of a connection.
            tls: TLS context. None: plaintext.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._make = make
        self._tls = tls
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        """TLS clients that have not sent anything yet, with their timeouts."""
        self._greeted: deque[socket.socket] = deque()
        """TLS clients waiting for their handshake to start."""
        self._beginning = False
        self._open: dict[asyncio.Task[None], None] = {}
        """Tasks that complete the handshake and create the protocol, oldest first."""
        self._resting: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start listening."""
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Stop listening and close the connections that have no protocol yet."""
        if self._listening.fileno() < 0:
            return
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for client in tuple(self._silent):
            self._give_up(client)
        for client in self._greeted:
            client.close()
        self._greeted.clear()
        for task in tuple(self._open):
            task.cancel()

    @property
    def waiting(self) -> int:
        """Number of accepted connections that have no protocol yet."""
        return len(self._silent) + len(self._greeted) + len(self._open)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._rest(error)
                    return
                continue  # the client has already closed it
            client.setblocking(False)
            if self._tls is None:
                self._hand_over(client)
            else:
                timer = self._loop.call_later(_HANDSHAKE_TIMEOUT / 2, self._give_up, client)
                self._silent[client] = timer
                self._loop.add_reader(client, self._heard, client)

    def _rest(self, error: OSError) -> None:
        """Pause accepting connections for ``_REST`` seconds."""
        log.error("cannot take a connection", reason=str(error), pause_s=_REST)
        self._loop.remove_reader(self._listening)
        self._resting = self._loop.call_later(_REST, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listening, self._accept)

    def _give_up(self, client: socket.socket) -> None:
        self._hear_no_more(client)
        client.close()

    def _hear_no_more(self, client: socket.socket) -> None:
        self._silent.pop(client).cancel()
        self._loop.remove_reader(client)

    def _heard(self, client: socket.socket) -> None:
        """Queue the client for its handshake."""
        self._hear_no_more(client)
        self._greeted.append(client)
        self._begin_soon()

    def _begin_soon(self) -> None:
        if self._greeted and not self._beginning:
            self._beginning = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._beginning = False
        for _ in range(min(_HANDSHAKES_AT_ONCE, len(self._greeted))):
            self._hand_over(self._greeted.popleft())
        while len(self._open) > _MOST_HANDSHAKES:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._begin_soon()

    def _hand_over(self, client: socket.socket) -> None:
        task = self._loop.create_task(self._connect(client))
        self._open[task] = None
        task.add_done_callback(self._handed_over)

    def _handed_over(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                client,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_TIMEOUT / 2,
            )
        except (OSError, TimeoutError) as error:  # including TLS errors
            log.debug("a connection was not made", reason=str(error))
            client.close()
        except asyncio.CancelledError:
            client.close()
            raise
