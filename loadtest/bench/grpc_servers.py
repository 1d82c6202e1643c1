"""``python -m loadtest.bench.grpc_servers``: CPU time of serving.h2grpc compared with grpc.aio.

Each server runs in a separate process and does almost nothing: a stream gets a prepared message of
90 bytes, the size of a token's, every 20 ms; a unary call returns its request. The client is
grpc.aio in another process. The figures are CPU times of each process (all threads) per message and
per call, which other work on the machine disturbs less than wall-clock time.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import uvloop

from serving.h2grpc.context import EOF
from serving.h2grpc.server import Server

SERVERS = ("serving.h2grpc", "grpc.aio")
CONNECTIONS = (1, 8)
STREAMS = 64
"""Number of concurrent streams over all connections, and of concurrent unary calls."""
EVERY = 0.02
"""Seconds between two messages of a stream."""
MESSAGE = b"x" * 90
_SERVICE = "bench.Echo"


class Echo:
    """The service of both servers."""

    async def cpu(self, request: bytes, context: Any) -> bytes:
        """Return the CPU seconds that this process has used."""
        del request, context
        return repr(time.process_time()).encode()

    async def call(self, request: bytes, context: Any) -> bytes:
        """Return the request."""
        del context
        return request

    async def stream(self, request: bytes, context: Any) -> None:
        """Send as many messages as the request specifies, one every 20 ms."""
        due = time.monotonic()
        for _ in range(int(request)):
            await context.write(MESSAGE)
            due += EVERY
            await asyncio.sleep(max(due - time.monotonic(), 0.0))


def handlers() -> Any:
    """Return the handlers for both servers."""
    echo = Echo()
    behaviours = {
        "cpu": grpc.unary_unary_rpc_method_handler(echo.cpu),
        "call": grpc.unary_unary_rpc_method_handler(echo.call),
        "stream": grpc.unary_stream_rpc_method_handler(echo.stream),
    }
    return grpc.method_handlers_generic_handler(_SERVICE, behaviours)


async def serve(name: str) -> None:
    """Print the port, and serve until standard input ends."""
    server: Any
    if name == "grpc.aio":
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        start = server.start()
    else:
        server = Server()
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        start = server.start(listening)
    server.add_generic_rpc_handlers((handlers(),))
    await start
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


class Client:
    """Channels to one server, each with its own connection."""

    def __init__(self, port: int, connections: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels: list[Any] = [  # the stubs require arguments that have defaults
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
            for _ in range(connections)
        ]

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def cost(self, work: Callable[[], Awaitable[int]]) -> dict[str, float]:
        """Run ``work``; return the CPU microseconds per item of server and client."""
        server, client = await self._server_cpu(), time.process_time()
        count = await work()
        server, client = await self._server_cpu() - server, time.process_time() - client
        return {"server": server / count * 1e6, "client": client / count * 1e6}

    async def streams(self, messages: int) -> int:
        """Read all streams to their end; return the number of messages."""

        async def read(number: int) -> int:
            channel = self._channels[number % len(self._channels)]
            call = channel.unary_stream(f"/{_SERVICE}/stream")(b"%d" % messages)
            return sum([1 async for _ in _messages(call)])

        return sum(await asyncio.gather(*map(read, range(STREAMS))))

    async def calls(self, count: int) -> int:
        """Make unary calls, ``STREAMS`` at a time; return their number."""

        async def ask(number: int) -> None:
            call = self._channels[number % len(self._channels)].unary_unary(f"/{_SERVICE}/call")
            for _ in range(count // STREAMS):
                await call(MESSAGE)

        await asyncio.gather(*map(ask, range(STREAMS)))
        return count // STREAMS * STREAMS

    async def _server_cpu(self) -> float:
        return float(await self._channels[0].unary_unary(f"/{_SERVICE}/cpu")(b""))


async def _messages(call: Any) -> AsyncIterator[bytes]:
    while (message := await call.read()) is not EOF:
        yield message


async def measure(port: int, connections: int, messages: int, calls: int) -> dict[str, Any]:
    """Return the CPU time of a streamed message and of a unary call."""
    client = Client(port, connections)
    await client.streams(5)
    await client.calls(STREAMS * 2)
    found = {
        "message": await client.cost(lambda: client.streams(messages)),
        "call": await client.cost(lambda: client.calls(calls)),
    }
    await client.close()
    return found


def one_turn(name: str, connections: int, messages: int, calls: int) -> dict[str, Any]:
    """Start a server and a client, measure, and stop them."""
    words = [sys.executable, "-m", "loadtest.bench.grpc_servers"]
    with subprocess.Popen(
        [*words, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = server.stdout.readline().strip()
        sizes = [str(connections), str(messages), str(calls)]
        result = subprocess.run(
            [*words, "--measure", port, *sizes], check=True, capture_output=True, text=True
        )
        server.stdin.close()
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def markdown(rows: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """Return the table: the minimum of all turns, with the median in brackets."""
    lines = [
        "| server | connections | per message, server | client | per call, server | client |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (name, connections), turns in rows.items():
        cells = [f"`{name}`", str(connections)]
        for what in ("message", "call"):
            for side in ("server", "client"):
                values = [turn[what][side] for turn in turns]
                cells.append(f"{min(values):.1f} ({statistics.median(values):.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--turns", type=int, default=5, help="rounds over all servers (default: 5)")
    parser.add_argument(
        "--messages",
        type=int,
        default=150,
        help="messages of each of the 64 streams (default: 150)",
    )
    parser.add_argument("--calls", type=int, default=6400, help="unary calls (default: 6400)")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        uvloop.run(serve(options.serve))
        return
    if options.measure:
        print(json.dumps(uvloop.run(measure(*options.measure))))
        return
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in range(options.turns):
        for name in SERVERS:
            for connections in CONNECTIONS:
                found = one_turn(name, connections, options.messages, options.calls)
                rows.setdefault((name, connections), []).append(found)
                print(f"turn {turn + 1}: {name}, {connections}: {found}", file=sys.stderr)
    print(markdown(rows))


if __name__ == "__main__":
    main()
