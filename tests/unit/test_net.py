"""Names that stand for several routers."""

import pytest

from serving import net
from serving.net import Target, addresses_of, dns_name, expanded


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
