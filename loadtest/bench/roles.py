"""Who of a deployment's processes does what, and what CPU time each role took.

A process belongs to a deployment if its environment holds the deployment's mark: children
inherit it, also those that Ray starts.
"""

from collections.abc import Collection, Iterator

import psutil

VARIABLE = "LOADTEST_BENCH_MARK"
ROLES = ("router", "rank", "other")
_RANKS = ("EngineCore", "ServeReplica", "VLLM::Worker")
"""In the command lines of processes that hold engines."""
_ROUTERS = ("serving router", "api_server")


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yield the living processes with a mark."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(VARIABLE) == mark:
                yield process
        except (psutil.Error, OSError):
            continue  # it ended, or is somebody else's


def role_of(pid: int, command: str, fronts: Collection[int]) -> str:
    """Name the role of a process: router, rank or other."""
    if any(word in command for word in _RANKS):
        return "rank"
    if pid in fronts or any(word in command for word in _ROUTERS):
        return "router"
    return "other"


def cpu_by_role(mark: str, fronts: Collection[int]) -> dict[str, float]:
    """Return the CPU seconds, user and system, of each role so far."""
    found = dict.fromkeys(ROLES, 0.0)
    for process in marked(mark):
        try:
            times = process.cpu_times()
            role = role_of(process.pid, " ".join(process.cmdline()), fronts)
        except psutil.Error:
            continue
        found[role] += times.user + times.system
    return found
