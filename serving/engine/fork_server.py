"""Forks the engine's processes from one that has imported vLLM already (on CPU).

A rank's process takes ten seconds of CPU time to import vLLM. Its engine core and, at rank 0, the
coordinator would be started anew when that is done, and would each import it again, one after the
other. So a server (Python's own ``multiprocessing.forkserver``) imports what they need while the
rank's process imports what it needs itself, and they are forked from it.

vLLM forks where it can, and cannot in a Ray actor (``_maybe_force_spawn`` in
vllm/utils/system_utils.py), whose process is full of threads. The server has one thread and runs
no torch operation: OpenMP and gloo begin in what is forked from it.
"""

import os
from multiprocessing import forkserver, process
from multiprocessing.context import ForkServerContext, ForkServerProcess

_IMPORTS = "serving.engine.fork_imports"


class _Process(ForkServerProcess):
    """A process with the environment of the one that asked for it.

    The server's own is older: vLLM sets variables between the start of the two.
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
    """Start the server and return its process id at once, while it imports.

    It ends when all that was forked from it and this process have ended; nothing is wrong with
    killing it when what was forked is gone.

    Args:
        folder: for its socket.

    """
    # Python would make a folder of its own, and leave it there if this process is killed.
    process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # noqa: SLF001
    forkserver.set_forkserver_preload(["__main__", _IMPORTS])
    forkserver.ensure_running()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # noqa: SLF001
    return pid


def fork_engines() -> None:
    """Have vLLM fork the engine cores and the coordinators of this process from the server."""
    from vllm.v1.engine import coordinator, utils

    context = _Context()
    for module in (coordinator, utils):
        module.get_mp_context = lambda: context
