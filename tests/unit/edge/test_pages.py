import asyncio

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from serving.edge.auth.authenticator import METRICS_TARGETS
from serving.edge.gate import DrainGate
from serving.edge.pages import RouterPages, add_pages
from serving.routing.snapshot import FleetSnapshot
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio


class Steps:
    """A collector and a source of snapshots that note in which turn of the loop they are used."""

    def __init__(self):
        self.turn, self.noted = 0, []

    def next_turn(self):
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.next_turn)

    def collect(self):
        self.noted.append(self.turn)
        return []

    def fleet(self):
        self.noted.append(self.turn)
        return FleetSnapshot("r")


@pytest.mark.parametrize(("path", "steps"), [("/metrics", 2), ("/fleet", 1), (METRICS_TARGETS, 1)])
async def test_pages_that_take_long_are_made_one_a_turn(path, steps):
    noted = Steps()
    registries = tuple(CollectorRegistry() for _ in range(2))
    for registry in registries:
        registry.register(noted)
    noted.noted.clear()
    app = FastAPI()
    add_pages(app, RouterPages(noted.fleet, registries, DrainGate(), "m"))
    noted.next_turn()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://r", timeout=PATIENCE) as one:
        answers = await asyncio.gather(*(one.get(path) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(noted.noted) == len(set(noted.noted)) == 8 * steps
