"""Roles of a deployment's processes, and the CPU time of each role.

A process belongs to a deployment if it or an ancestor has the deployment's mark in its
environment. Children inherit the mark, including those that Ray starts.
"""

from collections.abc import Collection, Iterator

import psutil

VARIABLE = "LOADTEST_BENCH_MARK"
ROLES = ("router", "rank", "other")
CLIENT = "client"
"""Role of the load client, which is not part of the deployment."""
_RANKS = ("EngineCore", "ServeReplica", "VLLM::Worker")
"""Substrings of the command lines of engine processes."""
_ROUTERS = (
    "serving router",
    "api_server",
    # Ray Serve LLM: the HTTP proxy, the ingress or the router that HAProxy uses, and the replica
    # of a rank, which does the work of vLLM's API server. The engine of such a replica is another
    # process, unlike that of our replicas.
    *("ray::ProxyActor", ":OpenAiIngress", ":DPServer:"),
    *("ray::HAProxyManager", "/bin/haproxy", ":LLMRouter"),
)


def marked(mark: str, also: Collection[int] = ()) -> Iterator[psutil.Process]:
    """Yield the live processes with the mark, those of ``also``, and their descendants.

    A child whose parent has ended still has the mark. Processes that overwrite their environment
    with a title, as vLLM's and Ray's do, are found through their parents, and vllm-router through
    ``also``.
    """
    family: set[int] = set()
    processes = sorted(psutil.process_iter(["ppid"]), key=_born)
    for process in processes:  # parents come before their children
        if process.info["ppid"] in family or process.pid in also or _has_mark(process, mark):
            family.add(process.pid)
            yield process


def _born(process: psutil.Process) -> float:
    try:
        return process.create_time()
    except psutil.Error:
        return 0.0


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(VARIABLE) == mark
    except (psutil.Error, OSError):
        return False  # the process has ended, or belongs to another user


def role_of(pid: int, command: str, fronts: Collection[int]) -> str:
    """Return the role of a process: router, rank or other."""
    if pid in fronts or any(word in command for word in _ROUTERS):
        return "router"
    return "rank" if any(word in command for word in _RANKS) else "other"


def cpu_by_role(mark: str, fronts: Collection[int]) -> dict[str, float]:
    """Return the CPU seconds (user and system) that each role has used so far."""
    found = dict.fromkeys(ROLES, 0.0)
    for process in marked(mark, fronts):
        try:
            times = process.cpu_times()
            role = role_of(process.pid, " ".join(process.cmdline()), fronts)
        except psutil.Error:
            continue
        found[role] += times.user + times.system
    return found
