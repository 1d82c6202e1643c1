"""Floods a port, from a process of its own.

    python -m loadtest.bench.flooding grpc|rest HOST:PORT PATH NAME CONNECTIONS SECONDS

Writes as fast as the server reads, on so many connections; connects again where it hangs up.
Prints one line of JSON: bytes sent, connections made, GOAWAYs with ENHANCE_YOUR_CALM seen.
"""

import contextlib
import json
import select
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass

from loadtest.bench.flood_bytes import Flood, http1_floods, http2_floods

_CALM = b"\0\0\0\x0b"
"""ENHANCE_YOUR_CALM, as the end of a GOAWAY (RFC 9113, section 7)."""
_TAIL = 32
"""Bytes; a GOAWAY has 17."""
_PATIENCE = 0.5


@dataclass(slots=True)
class Sent:
    """What became of a flood."""

    bytes: int = 0
    connections: int = 0
    calmed: int = 0


def flood(address: tuple[str, int], what: Flood, until: float, sent: Sent) -> None:
    """Send one connection's flood, and the next one's, until the time ``until``."""
    while time.monotonic() < until:
        try:
            with socket.create_connection(address, timeout=_PATIENCE) as connection:
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
                with contextlib.suppress(BlockingIOError):
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
    """Take what has come; keep its last bytes.

    Raises:
        ConnectionError: the server has hung up.
    """
    with contextlib.suppress(BlockingIOError):
        while some := connection.recv(2**18):
            tail += some
            del tail[:-_TAIL]
        raise ConnectionResetError


def main() -> None:
    """Read the arguments and flood."""
    kind, address, path, name, connections, seconds = sys.argv[1:]
    host, _, port = address.rpartition(":")
    floods = (http2_floods if kind == "grpc" else http1_floods)(path)
    what = next(each for each in floods if each.name == name)
    until = time.monotonic() + float(seconds)
    sent = Sent()
    threads = [
        threading.Thread(target=flood, args=((host, int(port)), what, until, sent))
        for _ in range(int(connections))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(asdict(sent)), flush=True)


if __name__ == "__main__":
    main()
