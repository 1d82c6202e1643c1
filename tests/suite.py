"""``make test``: the whole suite, as parallel pytest runs.

    python -m tests.suite [ARGUMENT of pytest ...]

Tests with real engines or whole systems mostly wait for processes to start and stop, so tests
without engines run at the same time: one lane runs these, in several processes that are forked
with vLLM imported (``tests.support.warm``), and the other lanes execute the runs in ``ENGINE_RUNS``
one after another. Each engine run is a new process, because vLLM forks, and threads and channels of
earlier tests break forked processes. It has a separate folder for temporary files, because ranks on
one machine find each other there (``moe-serving leave``).

The output ends with the failed tests and a table of the runs. Together, they have at most
``SUMMARY`` characters, because some CI systems keep only the end of the output.

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
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import failures, warm

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED, NO_TESTS = 2, 5
"""Exit statuses of pytest: after Ctrl-C, and when no test was selected."""
CORES = len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count() or 2
"""Number of cores that this process may use."""
WORKERS = CORES + 2
"""Number of pytest processes for tests without engines."""
ENGINE_LANES = 2 if CORES > 1 and psutil.virtual_memory().total >= 12 * 2**30 else 1
"""Number of engine runs at the same time; each needs up to 5 GiB."""
SUMMARY = 2000
"""Maximum size of the final summary, characters."""
LISTED, LINE, SHORTEST_LINE = 30, 400, 70
"""Maximum number of failed tests in the summary, and maximum and minimum length of a line."""
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
    cpu_seconds: float = 0.0
    """CPU time of the process and of its reaped descendants, seconds."""
    failures: list[str] = field(default_factory=list)
    """Failed tests and errors, each with its message in one line."""
    server: warm.Server | None = None
    """Forks the processes of the run."""

    def __call__(self, more: list[str]) -> None:
        """Run it to its end and print its output, line by line."""
        began = time.monotonic()
        folder = tempfile.mkdtemp(prefix="t-") if self.own_folder else ""
        descriptor, file = tempfile.mkstemp(prefix="failures-")
        os.close(descriptor)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", failures.__name__, *self.arguments, *more],
            cwd=ROOT,
            env=_environment()
            | {failures.VARIABLE: file}
            | ({"TMPDIR": folder} if folder else {})
            | ({warm.VARIABLE: self.server.path} if self.server else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            _print(f"{self.name:>7} | {line.rstrip()}")
            last = line.strip() or last
        _, status, usage = os.wait4(process.pid, 0)
        self.status = process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.cpu_seconds += self.server.close() if self.server else 0.0
        self.seconds = time.monotonic() - began
        self.failures = Path(file).read_text("utf-8").splitlines()
        Path(file).unlink()
        if self.status not in {0, NO_TESTS} and not self.failures:
            self.failures = [last]
        if folder and self.status in {0, NO_TESTS}:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder:
            _print(f"{self.name:>7} | its temporary files are in {folder}")

    def __str__(self) -> str:
        result = {0: "passed", NO_TESTS: "no tests"}.get(self.status, f"FAILED ({self.status})")
        return f"{self.name:>7} | {result} in {self.seconds:.0f} s, CPU {self.cpu_seconds:.0f} s"


UNITS = ("-m", "not vllm and not e2e", "--dist", "loadfile", "--no-loadscope-reorder")
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
    server = warm.Server()
    workers = f"{WORKERS}*popen//python={server.command}"
    units = Run("units", (*UNITS, "--tx", workers), own_folder=False, server=server)
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
    _print("", *summary([*others, units]))
    found = {run.status for run in (*others, units)}
    if not found <= {0, NO_TESTS}:
        return 1
    return min(found)


def _environment() -> dict[str, str]:
    """Return the environment of the runs, in which processes start with less CPU time.

    Without bytecode files, each of thousands of processes would compile its modules, and pytest
    would rewrite the assertions of all tests. Helm and kubectl end before they need to collect
    garbage.
    """
    environment = {"GOGC": "400", **os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def summary(runs: list[Run]) -> list[str]:
    """Return the lines at the end of the output: the failed tests, then all runs."""
    table = [str(run) for run in runs]
    failed = [f"{run.name}: {failure}" for run in runs for failure in run.failures]
    if not failed:
        return table
    left = SUMMARY - sum(len(line) + 1 for line in table) - 100  # for the two lines below
    width = min(LINE, max(SHORTEST_LINE, left // len(failed) - 1))
    listed = failed[: min(LISTED, left // (width + 1))]
    lines = [each if len(each) <= width else f"{each[: width - 1]}…" for each in listed]
    if more := len(failed) - len(listed):
        lines.append(f"… and {more} more, listed above")
    return [f"failed: {len(failed)}", *lines, "", *table]


_printing = threading.Lock()


def _print(*lines: str) -> None:
    with _printing:
        sys.stdout.write("\n".join((*lines, "")))
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
