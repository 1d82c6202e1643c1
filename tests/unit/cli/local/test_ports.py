"""The router's ports: taken, used twice, chosen."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serving.cli.local.ports import PortTaken, require_free, url_host, with_chosen_ports
from serving.errors import SettingsError
from serving.settings import Settings


def settings(**router: Any) -> Settings:
    ports: dict[str, Any] = {"rest_port": 0, "grpc_port": 0, "join_port": 0} | router
    return Settings(router=ports)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("field", "flag"),
    [("rest_port", "--port"), ("grpc_port", "--grpc-port"), ("join_port", "--join-port")],
)
def test_taken_port_names_itself_and_its_flag(taken: int, field: str, flag: str) -> None:
    with pytest.raises(PortTaken, match=rf"port {taken} .* in use .*\({flag}\)"):
        require_free(settings(**{field: taken}))


def test_one_port_for_two_is_refused(taken: int) -> None:
    with pytest.raises(SettingsError, match=f"both are {taken + 1}"):
        require_free(settings(grpc_port=taken + 1, join_port=taken + 1))


def test_foreign_address_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.77:0 for REST"):
        require_free(settings(host="192.0.2.77"))


def test_port_0_becomes_a_free_one_and_ranks_dial_it() -> None:
    with with_chosen_ports(settings()) as chosen:
        ports = [chosen.router.rest_port, chosen.router.grpc_port, chosen.router.join_port]
        assert len(set(ports)) == 3
        assert 0 not in ports
        assert chosen.link.routers == (f"127.0.0.1:{chosen.router.join_port}",)
        require_free(chosen)
        for port in ports:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("router", "routers", "expected"),
    [
        pytest.param({}, None, ("127.0.0.1:50052",), id="defaults"),
        pytest.param({"join_port": 7}, None, ("127.0.0.1:7",), id="ranks follow the port"),
        pytest.param(
            {"join_port": 7, "join_host": "0.0.0.0"}, None, ("127.0.0.1:7",), id="wildcard"
        ),
        pytest.param({"join_port": 7}, ("a:1", "b:2"), ("a:1", "b:2"), id="the user's own list"),
    ],
)
def test_routers_that_ranks_dial(
    router: dict[str, object], routers: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    flags: dict[str, Any] = {"router": router}
    if routers is not None:
        flags["link"] = {"routers": routers}
    given = Settings(**flags)
    with with_chosen_ports(given) as chosen:
        assert chosen.link.routers == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")],
)
def test_url_host(host: str, expected: str) -> None:
    assert url_host(host) == expected
