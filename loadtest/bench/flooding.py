"""Floods a port from a separate process.

    python -m loadtest.bench.flooding grpc|rest HOST:PORT PATH NAME CONNECTIONS SECONDS [CA]

Writes as fast as the server reads, on CONNECTIONS connections, and reconnects when the server
closes one. Connections use TLS if a CA file is given. Prints a line of JSON: bytes sent,
connections made, and GOAWAYs with ENHANCE_YOUR_CALM.
"""

import contextlib
import json
import select
import socket
import ssl
import sys
import threading
import time
from dataclasses import asdict, dataclass

from loadtest.bench.flood_bytes import Flood, http1_floods, http2_floods

_CALM = b"\0\0\0\x0b"
"""ENHANCE_YOUR_CALM, as the end of a GOAWAY (RFC 9113, section 7)."""
_TAIL = 32
"""Trailing bytes of an answer to keep; a GOAWAY has 17."""
_PATIENCE = 0.5
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(slots=True)
class Sent:
    """Outcome of a flood."""

    bytes: int = 0
    connections: int = 0
    calmed: int = 0


def flood(
    address: tuple[str, int],
    what: Flood,
    until: float,
    sent: Sent,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Flood one connection after another until ``until``."""
    while time.monotonic() < until:
        try:
            plain = socket.create_connection(address, timeout=_PATIENCE)
            with (
                plain
                if tls is None
                else tls.wrap_socket(plain, server_hostname=address[0]) as connection
            ):
                sent.connections += 1
                _one(connection, what, until, sent)
        except OSError:
            time.sleep(0.01)


def _one(connection: socket.socket, what: Flood, until: float, sent: Sent) -> None:
    connection.setblocking(False)
    tail = bytearray()
    try:
        if what.opening:
            connection.send(what.opening)
        for body in what.bodies():
            view = memoryview(body)
            while view and time.monotonic() < until:
                select.select([connection], [connection], [], _PATIENCE)
                with contextlib.suppress(*_WOULD_BLOCK):
                    done = connection.send(view)
                    sent.bytes += done
                    view = view[done:]
                _read(connection, tail)
            if what.churn or time.monotonic() >= until:
                return
    finally:
        with contextlib.suppress(OSError):
            _read(connection, tail)
        sent.calmed += _CALM in tail


def _read(connection: socket.socket, tail: bytearray) -> None:
    """Read the available data; keep the last bytes in ``tail``.

    Raises:
        ConnectionError: The server closed the connection.
    """
    with contextlib.suppress(*_WOULD_BLOCK):
        while some := connection.recv(2**18):
            tail += some
            del tail[:-_TAIL]
        raise ConnectionResetError


def main() -> None:
    """Run the command line."""
    kind, address, path, name, connections, seconds, *ca = sys.argv[1:]
    tls = None
    if ca:
        tls = ssl.create_default_context(cafile=ca[0])
        tls.set_alpn_protocols(["h2" if kind == "grpc" else "http/1.1"])
    host, _, port = address.rpartition(":")
    floods = (http2_floods if kind == "grpc" else http1_floods)(path)
    what = next(each for each in floods if each.name == name)
    until = time.monotonic() + float(seconds)
    sent = Sent()
    threads = [
        threading.Thread(target=flood, args=((host, int(port)), what, until, sent, tls))
        for _ in range(int(connections))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(asdict(sent)), flush=True)


if __name__ == "__main__":
    main()
