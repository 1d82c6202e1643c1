"""Real engines inside a test's process."""

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator

from serving.engine.base import Engine
from serving.engine.environment import apply_environment, engine_environment
from serving.engine.fork_server import fork_engines, start_fork_server
from serving.link.v1 import link_pb2
from serving.settings import Settings


@functools.cache
def share_fork_server() -> None:
    """Fork all engines of this process from one server that has imported vLLM.

    Each rank's process has such a server. Without it vLLM spawns its processes from a
    test's, and each of them imports vLLM first: eight seconds of CPU time.
    """
    # The server loads libraries that read environment variables only once.
    apply_environment(engine_environment(Settings()))
    folder = tempfile.mkdtemp(prefix="moe-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    start_fork_server(folder)
    fork_engines()


async def generate(engine: Engine, work: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
    """Run a request on an engine and yield its deltas; closing the iterator cancels the request."""
    deltas: asyncio.Queue[link_pb2.Delta] = asyncio.Queue()
    request_id = work.request_id
    running = engine.submit(work, deltas.put_nowait)
    finished = False
    try:
        while not finished:
            delta = await deltas.get()
            delta.request_id = request_id
            finished = delta.finished
            yield delta
    finally:
        if not finished:
            running.cancel()
