"""Counts by pool and model from the routers' pages, and the queries."""

import asyncio

import httpx
import pytest

from serving.autoscaler.pool_signals import PoolFleetReader, model_queries, pool_queries
from serving.autoscaler.routers import RouterPages, RouterReader
from serving.settings import AutoscalerSettings
from tests.support.waiting import eventually

POOLS = (("a", "x"), ("a", "y"), ("b", "x"))


def group(model, pool, state="ready", app=""):
    app = app or f"moe-serving-{model}-{pool}"
    return {
        "group_id": f"{model}-{pool}-{state}",
        "state": state,
        "since_unix_seconds": 1.0,
        "ranks": [],
        "app": app,
        "model": model,
        "pool": pool,
    }


def model(name, queued=0, *, ready=True):
    return {"name": name, "queued_requests": queued, "ready": ready}


def page(*groups, models=()):
    return {"groups": list(groups), "inflight_requests": 0, "models": list(models)}


def reader(*pages, asked=None, pause=None):
    names = tuple(f"http://router-{number}" for number in range(len(pages)))

    async def answer(request):
        if asked is not None:
            asked.append(str(request.url))
        if pause is not None:
            await pause.wait()
        content = pages[names.index(f"http://{request.url.host}")]
        return (
            httpx.Response(content)
            if isinstance(content, int)
            else httpx.Response(200, json=content)
        )

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    settings = AutoscalerSettings(routers=names)
    shared = RouterPages(client, settings)
    readers = {
        f"{name}/{pool}": RouterReader(
            client, settings, f"moe-serving-{name}-{pool}", pool=(name, pool), pages=shared
        )
        for name, pool in POOLS
    }
    return PoolFleetReader(shared, readers), readers


async def test_ready_groups_are_the_maximum_and_waiting_requests_the_sum():
    first = page(
        group("a", "x"),
        group("a", "y", "joining"),
        group("b", "x"),
        models=[model("a", 2), model("b")],
    )
    second = page(group("a", "x"), models=[model("a", 1), model("b", 4, ready=False)])
    found = await reader(first, second, 503)[0].pools()
    assert found.ready == {"a/x": 1, "a/y": 0, "b/x": 1}
    assert found.waiting == {"a": 3, "b": 4}
    assert found.parked["a"] == 0
    assert found.parked["b"] == 4, "only where no group of the model is ready"


async def test_groups_of_another_application_of_the_pool_are_not_counted():
    found = await reader(page(group("a", "x", app="blue"), group("a", "x", app="ray/x")))[0].pools()
    assert found.ready["a/x"] == 0


async def test_no_router_is_no_count():
    assert await reader(503)[0].pools() is None


async def test_a_router_of_an_earlier_version_has_no_models():
    old = {"groups": [], "inflight_requests": 0}
    found = await reader(old)[0].pools()
    assert dict(found.parked) == {}


async def test_each_pool_reads_its_own_groups():
    _, readers = reader(page(group("a", "x"), group("b", "x")))
    assert [each.group_id for each in await readers["b/x"].groups()] == ["b-x-ready"]


async def test_concurrent_readers_share_one_reading():
    asked, pause = [], asyncio.Event()
    counts, readers = reader(page(group("a", "x")), asked=asked, pause=pause)
    tasks = [
        asyncio.create_task(each)
        for each in (counts.pools(), readers["a/x"].groups(), readers["b/x"].groups())
    ]
    await eventually(lambda: asked, "the first request")
    tasks[1].cancel()
    pause.set()
    found, cancelled, groups = await asyncio.gather(*tasks, return_exceptions=True)
    assert found.ready["a/x"] == 1
    assert isinstance(cancelled, asyncio.CancelledError)
    assert groups == ()
    assert len(asked) == 1
    await counts.pools()
    assert len(asked) == 2, "a later reading asks again"


@pytest.mark.parametrize("selector", ["", 'job="moe"'])
def test_queries_do_not_depend_on_the_number_of_pools(selector):
    queries = {**pool_queries(selector, 60.0), **model_queries(selector, 60.0)}
    assert len(queries) == 10
    for query in queries.values():
        assert "by (" in query
        assert f"{{{selector}}}" in query
