"""Reference servers of the flood benchmark: plain grpc.aio and uvicorn, each with one stream.

    python -m loadtest.bench.flood_peers grpc|rest DELAY

Prints the port and serves until standard input ends.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import uvicorn

from loadtest.bench.flood_watch import METHOD

_MESSAGE = b"x" * 90
"""A message of the size of a streamed token's."""


async def _until_the_input_ends() -> None:
    await asyncio.to_thread(sys.stdin.read)


async def serve_grpc(delay: float) -> None:
    """Serve a stream of messages, one every ``delay`` seconds."""

    async def stream(_request: bytes, context: Any) -> None:
        while True:
            await context.write(_MESSAGE)
            await asyncio.sleep(delay)

    _, service, name = METHOD.split("/")
    handler = grpc.unary_stream_rpc_method_handler(stream)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await _until_the_input_ends()
    await server.stop(0)


async def serve_rest(delay: float) -> None:
    """Serve a stream of events for each POST; other requests get 404 or 200."""

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        streams = scope["method"] == "POST"
        status = 200 if streams or scope["path"] == "/health" else 404
        headers = [] if streams else [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while streams:
            event = b"data: %s\n\n" % _MESSAGE
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(delay)
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        task = asyncio.create_task(server.serve([listening]))
        await _until_the_input_ends()
        server.should_exit = server.force_exit = True
        await task


def main() -> None:
    """Run the command line."""
    import uvloop

    serve = serve_grpc if sys.argv[1] == "grpc" else serve_rest
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(sys.argv[2])))


if __name__ == "__main__":
    main()
