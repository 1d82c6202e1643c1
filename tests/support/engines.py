"""Real engines inside a test's process."""

import atexit
import functools
import shutil
import tempfile

from serving.engine.environment import apply_environment, engine_environment
from serving.engine.fork_server import fork_engines, start_fork_server
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
