"""Who of a deployment's processes does what, and what CPU time each role took.

A process belongs to a deployment if its environment holds the deployment's mark, which children
inherit, also those that Ray starts, or if it descends from one that does.
"""

from collections.abc import Collection, Iterator

import psutil

VARIABLE = "LOADTEST_BENCH_MARK"
ROLES = ("router", "rank", "other")
CLIENT = "client"
"""Who asks; not a process of the deployment."""
_RANKS = ("EngineCore", "ServeReplica", "VLLM::Worker")
"""In the command lines of processes that hold engines."""
_ROUTERS = (
    "serving router",
    "api_server",
    # Ray Serve LLM: the HTTP proxy, the ingress or the one that chooses replicas for HAProxy, and
    # the replica that does for one rank what vLLM's API server does, its engine being a process
    # beside it. Ours holds the engine itself.
    *("ray::ProxyActor", ":OpenAiIngress", ":DPServer:"),
    *("ray::HAProxyManager", "/bin/haproxy", ":LLMRouter"),
)


def marked(mark: str, also: Collection[int] = ()) -> Iterator[psutil.Process]:
    """Yield the living processes with a mark, those of ``also``, and all that descend from them.

    All: a child whose parent ended bears the mark still, one that wrote its title over its
    environment, as vLLM's and Ray's do, has its parents, and vllm-router's is one of ``also``.
    """
    family: set[int] = set()
    processes = sorted(psutil.process_iter(["ppid"]), key=_born)
    for process in processes:  # parents come before their children
        if process.info["ppid"] in family or process.pid in also or _bears(process, mark):
            family.add(process.pid)
            yield process


def _born(process: psutil.Process) -> float:
    try:
        return process.create_time()
    except psutil.Error:
        return 0.0


def _bears(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(VARIABLE) == mark
    except (psutil.Error, OSError):
        return False  # it ended, or is somebody else's


def role_of(pid: int, command: str, fronts: Collection[int]) -> str:
    """Name the role of a process: router, rank or other."""
    if pid in fronts or any(word in command for word in _ROUTERS):
        return "router"
    return "rank" if any(word in command for word in _RANKS) else "other"


def cpu_by_role(mark: str, fronts: Collection[int]) -> dict[str, float]:
    """Return the CPU seconds, user and system, of each role so far."""
    found = dict.fromkeys(ROLES, 0.0)
    for process in marked(mark, fronts):
        try:
            times = process.cpu_times()
            role = role_of(process.pid, " ".join(process.cmdline()), fronts)
        except psutil.Error:
            continue
        found[role] += times.user + times.system
    return found
