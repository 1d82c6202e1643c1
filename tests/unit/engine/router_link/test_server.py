"""Load reports: a busy rank sends each one, an idle rank only changes."""

import asyncio

import pytest

from serving.engine.router_link.server import RankIdentity, RankServer
from serving.link.v1 import link_pb2
from serving.settings import LinkSettings

HEALTHY, FAILED = link_pb2.LoadSnapshot.HEALTHY, link_pb2.LoadSnapshot.FAILED


class Engine:
    """Returns one load after the other, then reports that it is done."""

    def __init__(self, loads):
        self.loads = iter(loads)
        self.done = asyncio.Event()

    def describe(self):
        return link_pb2.Hello()

    async def load(self):
        found = next(self.loads, None)
        if found is None:
            self.done.set()
            await asyncio.Event().wait()
        return found

    async def check_health(self):
        """Be healthy."""


class Connection:
    """Keeps the reported loads."""

    reported: list[int]

    def __init__(self, address, *_, **__):
        Connection.reported = []

    def start(self):
        """Do nothing."""

    async def stop(self):
        """Do nothing."""

    def report(self, load):
        self.reported.append(load.generated_tokens_total or load.since_last_step_ms)


def load(clock, **fields):
    """A load whose step time and memory always differ."""
    fields = {"health": HEALTHY} | fields
    return link_pb2.LoadSnapshot(since_last_step_ms=clock, resident_bytes=clock, **fields)


@pytest.mark.parametrize(
    ("loads", "told"),
    [
        pytest.param([load(n) for n in range(1, 10)], [1, 5, 9], id="idle: every fourth"),
        pytest.param([load(n, running_requests=1) for n in range(1, 4)], [1, 2, 3], id="busy"),
        pytest.param([load(n, waiting_requests=1) for n in range(1, 4)], [1, 2, 3], id="waits"),
        pytest.param(
            [load(1), load(2), load(3, generated_tokens_total=70), load(4)],
            [1, 70, 4],
            id="a counter moved",
        ),
        pytest.param([load(1), load(2), load(3, health=FAILED)], [1, 3], id="health"),
    ],
)
async def test_what_is_told(loads, told, monkeypatch):
    monkeypatch.setattr("serving.engine.router_link.server.RouterConnection", Connection)
    # A new connection gets the load of the start, which is not a report.
    engine = Engine([load(100), *loads])
    settings = LinkSettings(load_interval=0.001, routers=["127.0.0.1:1"])
    server = RankServer(engine, settings, RankIdentity("g", "e", 0, 1))
    await server.start()
    await engine.done.wait()
    await server.stop()
    assert Connection.reported == [100, *told]
