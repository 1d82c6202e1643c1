"""What is read from /fleet, with routers that are made up."""

import httpx
import pytest

from serving.autoscaler.routers import Routers
from serving.autoscaler.snapshot import FleetCounts
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings


def group(name: str, state: str = "ready", inflight: int = 0, since: float = 1.0) -> dict:
    ranks = [{"node": f"node-{name}", "inflight_requests": inflight}]
    return {"group_id": name, "state": state, "since_unix_seconds": since, "ranks": ranks}


def page(*groups: dict, inflight: int = 0) -> dict:
    return {"groups": list(groups), "inflight_requests": inflight}


def routers(*pages, **changes) -> Routers:
    names = tuple(f"http://router-{number}" for number in range(len(pages)))

    def answer(request: httpx.Request) -> httpx.Response:
        content = pages[names.index(f"http://{request.url.host}")]
        if isinstance(content, int):
            return httpx.Response(content)
        if isinstance(content, Exception):
            raise content
        return httpx.Response(200, json=content)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Routers(client, AutoscalerSettings(routers=names, **changes))


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


async def test_groups_of_all_routers_each_once():
    found = await routers(page(group("a"), group("b", "joining")), page(group("a"))).groups()
    assert [(seen.group_id, seen.ready, set(seen.nodes)) for seen in found] == [
        ("a", True, {"node-a"}),
        ("b", False, {"node-b"}),
    ]


async def test_the_key_is_shown(tmp_path):
    file = tmp_path / "key"
    file.write_text("sk-1\n")
    assert routers(page(), api_key_file=str(file))._headers == {"authorization": "Bearer sk-1"}


def test_a_key_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        routers(page(), api_key_file=str(tmp_path / "none"))
