"""``make test``: the whole suite, as parallel pytest runs.

    python -m tests.suite [ARGUMENT of pytest ...]

Tests with real engines or whole systems mostly wait for processes to start and stop, so tests
without engines run at the same time: one lane runs these, in several processes, and the other
lanes take the runs of ``ENGINE_RUNS`` in turn. Each engine run is a fresh process, because vLLM
forks, and threads and channels of earlier tests break forked processes. It has its own folder for
temporary files, because ranks on one machine find each other there (``moe-serving leave``).

Every test is in one run: the marks ``vllm`` and ``e2e`` divide the suite, and the run ``system``
takes each end-to-end test outside the paths of the other runs.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED, NO_TESTS = 2, 5
"""Exit statuses of pytest: after Ctrl-C, and when no test was selected."""
WORKERS = (os.cpu_count() or 2) + 1
"""Number of pytest processes for tests without engines."""
ENGINE_LANES = 2 if psutil.virtual_memory().total >= 12 * 2**30 else 1
"""Number of engine runs at the same time; each needs up to 5 GiB."""
LAYOUTS = ("tests/e2e/test_verify.py", "tests/e2e/test_two_nodes.py")
SERVED, FAULTS = "tests/e2e/served", "tests/faults/test_real.py"


@dataclass
class Run:
    """One pytest process."""

    name: str
    arguments: tuple[str, ...]
    own_folder: bool = True
    """Whether it has its own folder for temporary files."""
    status: int = INTERRUPTED
    """Exit status; ``INTERRUPTED`` until it has ended."""
    seconds: float = 0.0

    def __call__(self, more: list[str]) -> None:
        """Run it to its end and print its output, line by line."""
        began = time.monotonic()
        folder = tempfile.mkdtemp(prefix="t-") if self.own_folder else ""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *self.arguments, *more],
            cwd=ROOT,
            env=os.environ | ({"TMPDIR": folder} if folder else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            _print(f"{self.name:>7} | {line.rstrip()}")
        self.status = process.wait()
        self.seconds = time.monotonic() - began
        if folder and self.status in {0, NO_TESTS}:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder:
            _print(f"{self.name:>7} | its temporary files are in {folder}")

    def __str__(self) -> str:
        result = {0: "passed", NO_TESTS: "no tests"}.get(self.status, f"FAILED ({self.status})")
        return f"{self.name:>7} | {result} in {self.seconds:.0f} s"


UNITS = (
    "-m", "not vllm and not e2e", "-n", str(WORKERS), "--dist", "loadfile",
    "--no-loadscope-reorder",
)  # fmt: skip
ENGINES = ("-m", "vllm and not e2e")
ENGINE_RUNS = {
    "layouts": ("-m", "e2e", *LAYOUTS),
    "served": ("-m", "e2e", SERVED),
    "faults": ("-m", "e2e", FAULTS),
    "system": ("-m", "e2e", *(f"--ignore={path}" for path in (*LAYOUTS, SERVED, FAULTS))),
    "engines": ENGINES,
}
"""By name, the longest first."""


def main(arguments: list[str]) -> int:
    """Run everything, or what pytest's ``arguments`` select.

    Returns:
        0 if every test passed, 5 if none was selected, otherwise 1.
    """
    # Ctrl-C reaches every pytest of the foreground group; this process waits until they end.
    # A handler, because children would inherit SIG_IGN.
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    chosen = any((ROOT / each.partition("::")[0]).exists() for each in arguments)
    engine_runs = {"engines": ENGINES, "e2e": ("-m", "e2e")} if chosen else ENGINE_RUNS
    units = Run("units", UNITS, own_folder=False)
    others = [Run(name, words) for name, words in engine_runs.items()]
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in others:
        waiting.put(run)

    def lane() -> None:
        with contextlib.suppress(queue.Empty):
            while not interrupted.is_set():
                waiting.get_nowait()(arguments)

    threads = [threading.Thread(target=units, args=(arguments,))]
    threads += [threading.Thread(target=lane) for _ in range(ENGINE_LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _print("", *map(str, (*others, units)))
    found = {run.status for run in (*others, units)}
    if not found <= {0, NO_TESTS}:
        return 1
    return min(found)


_printing = threading.Lock()


def _print(*lines: str) -> None:
    with _printing:
        sys.stdout.write("\n".join((*lines, "")))
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
