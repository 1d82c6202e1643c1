"""Which address and interface a rank's processes use to reach their peers."""

import socket

import psutil

from serving.errors import EngineError


def interface_of(address: str) -> str:
    """Return the network interface that has IPv4 or IPv6 ``address``.

    Raises:
        EngineError: no interface has it.
    """
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if (
                entry.family in {socket.AF_INET, socket.AF_INET6}
                and entry.address.partition("%")[0] == address
            ):
                return name
    raise EngineError(
        f"this node has no network interface with the address {address} that Ray gave it; "
        "start Ray with --node-ip-address set to one of the node's own addresses"
    )


def network_environment(address: str) -> dict[str, str]:
    """Return the variables that make vLLM and torch's collectives use ``address``.

    Without them both guess from the default route, which is wrong on loopback-only
    machines and on nodes with several networks.
    """
    interface = interface_of(address)
    return {
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def free_port(address: str) -> int:
    """Return a TCP port that is free on ``address`` now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
