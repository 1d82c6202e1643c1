"""Fork server for an engine's processes on CPU, with vLLM preloaded.

A rank's process needs ten seconds of CPU time to import vLLM. The engine core and, on rank 0, the
coordinator would then start as new processes and import vLLM again, one after the other. Instead,
a server (Python's ``multiprocessing.forkserver``) imports vLLM in parallel with the rank's process,
and both are forked from the server.

vLLM does not fork in a Ray actor (``_maybe_force_spawn`` in vllm/utils/system_utils.py), whose
process has many threads. The server has one thread and runs no torch operation: OpenMP and gloo
start in the forked processes.
"""

import os
from multiprocessing import forkserver, process
from multiprocessing.context import ForkServerContext, ForkServerProcess

_IMPORTS = "serving.engine.fork_imports"


class _Process(ForkServerProcess):
    """A process that starts with the rank's current environment.

    The server's environment is older: vLLM sets variables after the server has started.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._environment: dict[str, str] = {}

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def start_fork_server(folder: str) -> int:
    """Start the server and return its process id without waiting for the imports.

    The server ends when this process and all forked processes have ended. It can be killed once
    the forked processes have ended.

    Args:
        folder: Folder for the server's socket.
    """
    # Otherwise Python creates a folder and leaves it behind if this process is killed.
    process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # noqa: SLF001
    forkserver.set_forkserver_preload(["__main__", _IMPORTS])
    forkserver.ensure_running()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # noqa: SLF001
    return pid


def fork_engines() -> None:
    """Make vLLM fork this process's engine cores and coordinators from the server."""
    from vllm.v1.engine import coordinator, utils

    context = _Context()
    for module in (coordinator, utils):
        module.get_mp_context = lambda: context
