"""RDMA devices of this pod, and the environment variables that select them for NCCL and NVSHMEM.

NCCL_IB_HCA accepts prefixes (``mlx5``) unless it begins with ``=``; NVSHMEM_HCA_LIST accepts full
names. A name without a matching device ends the process after the weights are loaded. Names are
therefore checked against /sys/class/infiniband, or read from it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.errors import SettingsError

CHOICE = "MOE_SERVING_RDMA_HCA"
"""Variable that selects the ports. ``auto``: the fastest active ports. ``auto:mlx5,rdmap``: the
fastest among devices with these name prefixes. ``mlx5_0,mlx5_1:1``: these devices or ports."""
NCCL, NVSHMEM = "NCCL_IB_HCA", "NVSHMEM_HCA_LIST"
AUTO = "auto"

_RATE = re.compile(r"[\d.]+")


@dataclass(frozen=True, slots=True)
class Port:
    """One port of one RDMA device."""

    device: str
    number: int
    state: str
    """State reported by the kernel: ACTIVE, DOWN, INIT or ARMED."""
    layer: str
    """InfiniBand or Ethernet (RoCE)."""
    gigabits: float
    """Signalling rate, Gbit/s; 0 if unknown."""

    @property
    def active(self) -> bool:
        """Whether the link is up."""
        return self.state == "ACTIVE"

    @property
    def name(self) -> str:
        """``DEVICE:PORT``, the notation of NCCL and NVSHMEM."""
        return f"{self.device}:{self.number}"

    def __str__(self) -> str:
        return f"{self.name} {self.layer} {self.gigabits:g} Gbit/s {self.state}"


@dataclass(frozen=True, slots=True)
class Host:
    """Locations of the kernel's file systems; tests pass other folders."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")


def ports(host: Host | None = None) -> tuple[Port, ...]:
    """Return the ports of all RDMA devices of the node, sorted by device and port number."""
    root = (host or Host()).sys / "class" / "infiniband"
    found = []
    for folder in root.glob("*/ports/*"):
        if not folder.name.isdecimal():
            continue
        state = _text(folder / "state").rpartition(":")[2].strip()
        rate = _RATE.match(_text(folder / "rate"))
        found.append(
            Port(
                folder.parent.parent.name,
                int(folder.name),
                state or "unknown",
                _text(folder / "link_layer") or "unknown",
                float(rate.group()) if rate else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda port: (_natural(port.device), port.number)))


def usable(host: Host | None = None) -> tuple[Port, ...]:
    """Return the active ports whose device files are available in this pod.

    sysfs lists all devices of a node in every pod, but the device plugin adds
    /dev/infiniband/uverbsN only for the devices that the pod requests.
    """
    host = host or Host()
    verbs = host.sys / "class" / "infiniband_verbs"
    given = {
        _text(verbs / file.name / "ibdev") for file in (host.dev / "infiniband").glob("uverbs*")
    }
    return tuple(port for port in ports(host) if port.active and port.device in given)


def fastest(found: Iterable[Port]) -> tuple[Port, ...]:
    """Return the ports with the highest rate; InfiniBand takes precedence over Ethernet.

    The GPU fabric has the fastest ports of a node; slower ports serve storage and management.
    """
    candidates = tuple(found)
    if not candidates:
        return ()
    rate = max(port.gigabits for port in candidates)
    best = [port for port in candidates if port.gigabits == rate]
    layers = {port.layer for port in best}
    layer = "InfiniBand" if "InfiniBand" in layers else min(layers)
    return tuple(port for port in best if port.layer == layer)


def hca_environment(environment: Mapping[str, str], host: Host | None = None) -> dict[str, str]:
    """Return the variables that restrict NCCL and NVSHMEM to the selected devices.

    Existing values of NVSHMEM_HCA_LIST and NCCL_IB_HCA take precedence and are validated by the
    rules of their library; prefixes in NVSHMEM_HCA_LIST are expanded to full names.
    MOE_SERVING_RDMA_HCA provides the values of unset variables.

    Args:
        environment: This process's variables.
        host: Locations of the kernel's file systems.

    Returns:
        Variables to add; empty if the environment selects no device.

    Raises:
        SettingsError: A selected device or port does not exist or is not active. The message lists
            the usable ports.
    """
    host = host or Host()
    found: dict[str, str] = {}
    listed = environment.get(NVSHMEM, "").strip()
    if listed and not listed.startswith("^"):
        meant = _named(NVSHMEM, listed, host)
        if not _words(listed) <= {name for port in meant for name in (port.device, port.name)}:
            found[NVSHMEM] = _variables(meant)[NVSHMEM]
    _check_nccl(environment.get(NCCL, "").strip(), host)
    choice = environment.get(CHOICE, "").strip()
    if choice:
        names = _variables(_chosen(choice, host))
        found |= {
            key: value for key, value in names.items() if not environment.get(key, "").strip()
        }
    return found


def _chosen(choice: str, host: Host) -> tuple[Port, ...]:
    """Return the ports that a value of MOE_SERVING_RDMA_HCA selects."""
    word, _, prefixes = choice.partition(":")
    if word.lower() != AUTO:
        return _named(CHOICE, choice, host)
    wanted = tuple(prefix.strip() for prefix in prefixes.split(",") if prefix.strip()) or ("",)
    chosen = fastest(port for port in usable(host) if port.device.startswith(wanted))
    if not chosen:
        among = f" among {', '.join(wanted)}" if wanted != ("",) else ""
        there = _there(host)
        raise SettingsError(f"{CHOICE}={choice}: no usable RDMA port{among}: {there}")
    return chosen


def _variables(chosen: tuple[Port, ...]) -> dict[str, str]:
    names = ",".join(port.name for port in chosen)
    return {NVSHMEM: names, NCCL: f"={names}"}


def _words(text: str) -> set[str]:
    return {word.strip() for word in text.split(",") if word.strip()}


def _named(variable: str, text: str, host: Host) -> tuple[Port, ...]:
    """Return the ports that a list selects; an entry without a port number selects all ports."""
    present = usable(host)
    known = {port.device for port in ports(host)}
    chosen: list[Port] = []
    for word in (word.strip() for word in text.split(",")):
        if not word:
            continue
        device, _, number = word.partition(":")
        found = [
            port
            for port in present
            if (port.device == device or (device not in known and _begins(port.device, device)))
            and (not number or str(port.number) == number)
        ]
        if not found:
            raise SettingsError(f"{variable}={text}: {_absent(word, host)}")
        chosen += [port for port in found if port not in chosen]
    if not chosen:
        raise SettingsError(f"{variable}={text}: no device given")
    return tuple(chosen)


def _check_nccl(text: str, host: Host) -> None:
    """Validate NCCL_IB_HCA: prefixes, or full names after ``=``. Exclusions (``^``) are accepted.

    Raises:
        SettingsError: A name matches no usable port.
    """
    if not text or text.startswith("^"):
        return
    exact = text.startswith("=")
    present = usable(host)
    for word in (word.strip() for word in text.removeprefix("=").split(",")):
        device, _, number = word.partition(":")
        if word and not any(
            (port.device == device if exact else port.device.startswith(device))
            and (not number or str(port.number) == number)
            for port in present
        ):
            raise SettingsError(f"{NCCL}={text}: {_absent(word, host)}")


def _begins(device: str, prefix: str) -> bool:
    """Return whether a prefix selects a device: mlx5 selects mlx5_0; mlx5_1 not mlx5_10."""
    if not prefix or not device.startswith(prefix):
        return False
    following = device[len(prefix) : len(prefix) + 1]
    return not (prefix[-1].isdigit() and following.isdigit())


def _absent(word: str, host: Host) -> str:
    """Return why ``word`` selects no usable port, and the ports that are usable."""
    device = word.partition(":")[0]
    known = ports(host)
    for port in known:
        if word in {port.device, port.name} and not port.active:
            return f"port {port.name} is {port.state}, not ACTIVE; {_there(host)}"
    if any(port.device == device for port in known) and not any(
        port.device == device for port in usable(host)
    ):
        return (
            f"this pod has no access to {device}: /dev/infiniband has no file for it (check that "
            f"the pod requests the RDMA resource); {_there(host)}"
        )
    return f"device {word} does not exist; {_there(host)}"


def _there(host: Host) -> str:
    present = usable(host)
    if present:
        listed = ", ".join(str(port) for port in present)
        return f"usable ports: {listed}; {CHOICE}=auto selects the fastest"
    return _nothing(host)


def _nothing(host: Host) -> str:
    """Return why no port is usable."""
    known = ports(host)
    if not known:
        return "this node has no RDMA device (/sys/class/infiniband is empty)"
    if any(port.active for port in known):
        return (
            "this pod has no access to RDMA devices: /dev/infiniband has no files for the node's "
            f"active ports ({', '.join(str(port) for port in known if port.active)}); the pod must "
            "request the RDMA resource of the device plugin"
        )
    return f"no RDMA port is active: {', '.join(str(port) for port in known)}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a natural sort key: mlx5_10 sorts after mlx5_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
