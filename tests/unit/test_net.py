"""Ports held for later, and names that stand for several routers."""

import socket

import pytest

from serving import net
from serving.net import HeldPort, Target, addresses_of, dns_name, expanded


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("10.0.0.1:5", None, id="address"),
        pytest.param("[::1]:5", None, id="v6"),
        pytest.param("dns:///routers.test:5", ("routers.test", 5), id="name"),
    ],
)
def test_dns_name(target: str, expected: tuple[str, int] | None) -> None:
    assert dns_name(target) == expected


@pytest.mark.parametrize("target", ["host", ":5", "host:port", "dns:///host", "dns:///:5", ""])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="is neither host:port nor dns:///name:port"):
        dns_name(target)


async def test_each_address_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(host: str, port: int) -> set[str]:
        return {f"10.0.0.2:{port}", f"10.0.0.1:{port}"}

    monkeypatch.setattr(net, "addresses_of", found)
    assert await expanded(["10.0.0.2:5", "dns:///a.test:5", "dns:///b.test:5"]) == [
        Target("10.0.0.2:5"),
        Target("10.0.0.1:5", "a.test"),
    ]


async def test_localhost_resolves() -> None:
    assert await addresses_of("localhost", 7) & {"127.0.0.1:7", "[::1]:7"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_held_port_goes_only_to_a_server_that_names_it(host: str, everywhere: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with HeldPort(host) as held:
        with socket.socket(family) as anybody, pytest.raises(OSError, match="in use"):
            # The rule by which the kernel passes over it when it chooses a port.
            anybody.bind((host, held.port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, held.port)).close()
        wildcard = {"127.0.0.1": "0.0.0.0", "::1": "::"}[host]
        address = wildcard if everywhere else host
        with socket.create_server((address, held.port), family=family) as server:
            held.release()
            with socket.create_connection((host, held.port)) as client:
                assert client.getpeername()[1] == server.getsockname()[1]


def test_no_port_is_held_on_a_foreign_address() -> None:
    with pytest.raises(OSError, match="assign"):
        HeldPort("192.0.2.77")
