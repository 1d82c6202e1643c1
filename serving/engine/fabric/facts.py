"""Facts about a peer's machine, collected before it connects to the other peers."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from typing import Any

from serving.engine import memlock as lockable
from serving.engine import rdma
from serving.engine.fabric.plan import Backend, Plan
from serving.errors import SettingsError

PROTOCOL = 1
"""Version of the protocol between peers."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Machine and build of one peer."""

    index: int
    name: str
    node: str = ""
    """Name of the Kubernetes node, from NODE_NAME; empty if unknown."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Versions and options that must be identical on all peers."""
    devices: tuple[str, ...] = ()
    """Descriptions of the usable RDMA ports."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables for the workers that select RDMA devices."""
    memlock: str = ""
    """Locked-memory limit as text."""
    problems: tuple[str, ...] = ()
    """Reasons why the check cannot run on this machine."""
    warnings: tuple[str, ...] = ()

    def as_message(self) -> dict[str, Any]:
        """Return the facts as JSON data."""
        return asdict(self)

    @staticmethod
    def of_message(data: Mapping[str, Any]) -> "Facts":
        """Decode the facts of another peer.

        Raises:
            ValueError: The data are not facts.
        """
        try:
            return Facts(
                index=int(data["index"]),
                name=str(data["name"]),
                node=str(data["node"]),
                same={str(key): str(value) for key, value in data["same"].items()},
                devices=tuple(map(str, data["devices"])),
                variables={str(key): str(value) for key, value in data["variables"].items()},
                memlock=str(data["memlock"]),
                problems=tuple(map(str, data["problems"])),
                warnings=tuple(map(str, data["warnings"])),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a peer's facts: {error}") from error


def gather(
    plan: Plan,
    environment: Mapping[str, str] = os.environ,
    host: rdma.Host | None = None,
    memlock: Callable[[], int | None] = lockable.limit,
) -> Facts:
    """Collect the facts of this machine.

    Args:
        plan: Plan of the check.
        environment: This process's variables.
        host: Locations of the kernel's file systems.
        memlock: Returns the locked-memory limit in bytes, or ``None`` for unlimited.
    """
    host = host or rdma.Host()
    problems: list[str] = []
    warnings: list[str] = []
    variables = {key: environment[key] for key in (rdma.NCCL, rdma.NVSHMEM) if environment.get(key)}
    try:
        variables |= rdma.hca_environment(environment, host)
    except SettingsError as error:
        problems.append(str(error))
    usable = rdma.usable(host)
    limit = memlock()
    locked = lockable.problem(limit, free=lockable.locks_freely(host)) if usable else None
    if locked is not None:
        (warnings if plan.backend is Backend.GLOO else problems).append(locked)
    return Facts(
        index=plan.index,
        name=socket.gethostname(),
        node=environment.get("NODE_NAME", ""),
        same={
            "protocol": str(PROTOCOL),
            "moe-serving": _version("moe-serving"),
            "torch": _version("torch"),
            "DeepEP": _version("deep_ep") if util.find_spec("deep_ep") else "not installed",
            "--peers": str(plan.peers),
            "--workers-per-peer": "one per GPU" if plan.workers is None else str(plan.workers),
            "--backend": plan.backend.value,
            "--bytes": str(plan.size),
            "--rounds": str(plan.rounds),
        },
        devices=tuple(map(str, usable)),
        variables=variables,
        memlock=lockable.text(limit),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def difference(one: Facts, other: Facts) -> str | None:
    """Return the differences in ``Facts.same`` between two peers, or ``None``."""
    keys = [*one.same, *(key for key in other.same if key not in one.same)]
    parts = [
        f"{key} {other.same.get(key, 'unknown')} at peer {other.index} ({other.name}), "
        f"{one.same.get(key, 'unknown')} at peer {one.index} ({one.name})"
        for key in keys
        if one.same.get(key) != other.same.get(key)
    ]
    return "; ".join(parts) or None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
