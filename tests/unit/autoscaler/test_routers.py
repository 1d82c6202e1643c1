"""Reading /fleet, with fake routers."""

import httpx
import pytest

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.routers import RouterReader
from serving.autoscaler.signals import FleetCounts
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings


def group(name: str, state: str = "ready", inflight: int = 0, since: float = 1.0) -> dict:
    ranks = [{"node": f"node-{name}", "inflight_requests": inflight}]
    return {"group_id": name, "state": state, "since_unix_seconds": since, "ranks": ranks}


def page(*groups: dict, inflight: int = 0) -> dict:
    return {"groups": list(groups), "inflight_requests": inflight}


def routers(*pages, app="", tokens=None, **changes) -> RouterReader:
    names = tuple(f"http://router-{number}" for number in range(len(pages)))

    def answer(request: httpx.Request) -> httpx.Response:
        if tokens is not None:
            tokens.append(request.headers.get("authorization"))
        content = pages[names.index(f"http://{request.url.host}")]
        if isinstance(content, int):
            return httpx.Response(content)
        if isinstance(content, Exception):
            raise content
        return httpx.Response(200, json=content)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return RouterReader(client, AutoscalerSettings(routers=names, **changes), app)


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        pytest.param([page()], FleetCounts(0, 0), id="nothing"),
        pytest.param([page(inflight=3)], FleetCounts(0, 3), id="parked"),
        pytest.param([page(group("a"), inflight=3)], FleetCounts(1, 0), id="queued-not-parked"),
        pytest.param(
            [page(group("a", "draining", inflight=2), inflight=3)], FleetCounts(0, 1), id="draining"
        ),
        pytest.param([page(inflight=3), page(inflight=4)], FleetCounts(0, 7), id="two-routers"),
        pytest.param([503, page(group("a"))], FleetCounts(1, 0), id="one-is-away"),
        pytest.param([httpx.ConnectError("no")], None, id="all-are-away"),
        pytest.param([{"odd": 1}], None, id="not-a-fleet"),
        pytest.param([[1]], None, id="a-list"),
    ],
)
async def test_counts(pages, expected):
    assert await routers(*pages).counts() == expected


async def test_groups_of_another_app_are_not_counted():
    fleet = page(
        group("a") | {"app": "cluster/r1-h200"},
        group("b") | {"app": "cluster/r1-h100"},
        group("c") | {"app": "r1-h200"},
        group("d") | {"app": ""},
        group("e"),
    )
    found = routers(fleet, app="r1-h200")
    assert (await found.counts()).ready == 4
    assert [seen.group_id for seen in await found.groups()] == ["a", "c", "d", "e"]
    assert (await routers(fleet).counts()).ready == 5


async def test_a_request_is_not_parked_while_another_app_is_ready():
    fleet = page(group("b") | {"app": "r1-h100"}, inflight=3)
    assert await routers(fleet, app="r1-h200").counts() == FleetCounts(0, 0)


async def test_groups_of_all_routers_each_once():
    found = await routers(page(group("a"), group("b", "joining")), page(group("a"))).groups()
    assert [(seen.group_id, seen.ready, set(seen.nodes)) for seen in found] == [
        ("a", True, {"node-a"}),
        ("b", False, {"node-b"}),
    ]


@pytest.mark.parametrize(
    ("url", "ca_file", "dialled", "host"),
    [
        pytest.param(
            "dns:///routers.test:8000",
            None,
            "http://10.0.0.{}:8000/fleet",
            "routers.test:8000",
            id="http",
        ),
        pytest.param(
            "dns:///routers.test:8000",
            "ca.crt",
            "https://10.0.0.{}:8000/fleet",
            "routers.test:8000",
            id="https",
        ),
        pytest.param(
            "dns+http://routers.test:8000",
            None,
            "http://10.0.0.{}:8000/fleet",
            "routers.test:8000",
            id="alias-http",
        ),
        pytest.param(
            "dns+https://routers.test",
            None,
            "https://10.0.0.{}:443/fleet",
            "routers.test",
            id="alias-https",
        ),
    ],
)
async def test_every_address_behind_a_name_is_asked(monkeypatch, url, ca_file, dialled, host):
    async def addresses_of(name, port):
        assert name == "routers.test"
        return {f"10.0.0.{number}:{port}" for number in (1, 2)}

    monkeypatch.setattr("serving.autoscaler.routers.addresses_of", addresses_of)
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=page(inflight=3))

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    found = RouterReader(client, AutoscalerSettings(routers=(url,), ca_file=ca_file))
    assert await found.counts() == FleetCounts(0, 6)
    assert {request.url for request in requests} == {
        httpx.URL(dialled.format(number)) for number in (1, 2)
    }
    # Its certificate is for the name.
    assert {request.headers["host"] for request in requests} == {host}
    assert {request.extensions["sni_hostname"] for request in requests} == {"routers.test"}


async def test_a_name_that_does_not_resolve_is_a_router_that_is_away(monkeypatch):
    async def addresses_of(name, port):
        raise OSError("no such name")

    monkeypatch.setattr("serving.autoscaler.routers.addresses_of", addresses_of)
    found = RouterReader(
        httpx.AsyncClient(timeout=1), AutoscalerSettings(routers=("dns:///r.test:1",))
    )
    assert await found.counts() is None


@pytest.mark.parametrize("url", ["routers.test:8000", "ftp://r.test", "dns:///r.test", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(SettingsError, match=r"autoscaler\.routers"):
        RouterReader(httpx.AsyncClient(timeout=1), AutoscalerSettings(routers=(url,)))


async def test_the_key_is_shown(tmp_path):
    file = tmp_path / "key"
    file.write_text("sk-1\n")
    tokens = []
    await routers(page(), tokens=tokens, api_key_file=str(file)).counts()
    assert tokens == ["Bearer sk-1"]


def test_a_key_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        routers(page(), api_key_file=str(tmp_path / "none"))


async def test_that_no_router_answers_is_not_that_there_is_no_group():
    with pytest.raises(ActuatorError, match="no router responds"):
        await routers(503, httpx.ConnectError("no")).groups()
    assert await routers(503, page()).groups() == ()
