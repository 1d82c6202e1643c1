"""Far more than the fleet can do, by two tenants of whom one asks far more often.

A whole router over real HTTP, with fake engines that take a fixed time for a token.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest
import yaml

from serving.admission.waiting_room import WaitingRoom
from serving.edge.keys import digest_of, new_key
from serving.engine.fake_engine import FakeEngine
from serving.engine.rank_server import RankIdentity, RankServer
from serving.settings import Settings
from serving.telemetry.metrics import REGISTRY
from serving.wiring import Router

TOKENS = 20
TOKEN_DELAY = 0.015
SLOTS = 4
CLIENTS = {"eager": 30, "modest": 10}
"""Each asks again as soon as it has an answer: the fleet runs four requests at a time, the queue is
never empty, on a fast machine and on a slow one."""
FILLED, COUNTED = 10, 80
"""Requests served until all slots and the queue are full; those that are counted after that."""


@dataclass
class Seen:
    """What the clients of one tenant saw."""

    statuses: Counter = field(default_factory=Counter)
    tokens: int = 0
    refused_after: list = field(default_factory=list)
    served_after: list = field(default_factory=list)
    retry_after: list = field(default_factory=list)

    async def ask(self, client, key):
        began = time.monotonic()
        answer = await client.post(
            "/v1/completions",
            json={"model": "pocket-r1", "prompt": "abc", "max_tokens": TOKENS},
            headers={"authorization": f"Bearer {key}"},
        )
        took = time.monotonic() - began
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            self.tokens += answer.json()["usage"]["completion_tokens"]
            self.served_after.append(took)
        else:
            self.refused_after.append(took)
            self.retry_after.append(int(answer.headers["retry-after"]))
            assert answer.json()["error"]["reason"] == "OVERLOADED"


@pytest.fixture
def keys():
    return {tenant: new_key() for tenant in CLIENTS}


@pytest.fixture
async def start(tmp_path, keys):
    """Starts a router with one group of one fake rank."""
    file = tmp_path / "keys.yaml"
    entries = [
        {"id": tenant, "hash": digest_of(key), "tenant": tenant} for tenant, key in keys.items()
    ]
    file.write_text(yaml.safe_dump({"keys": entries}))
    running = []

    async def start(**admission):
        settings = Settings(
            router={"rest_port": 0, "grpc_port": 0, "join_port": 0},
            engine={"kind": "fake", "max_num_seqs": SLOTS},
            group={"data_parallel": 1},
            routing={"queue_allowance": 0},
            security={"keys_file": str(file)},
            admission=admission,
        )
        router = await Router.start(settings)
        running.append(router.stop)
        engine = FakeEngine(settings, token_delay=TOKEN_DELAY)
        await engine.start()
        link = settings.link.model_copy(update={"routers": (router.addresses.join,)})
        rank = RankServer(engine, link, RankIdentity("g0", "e0", 0, 1, "127.0.0.1"))
        running.append(rank.stop)
        await rank.start()
        async with asyncio.timeout(30):
            while not router.roster.ready:  # noqa: ASYNC110  the simplest way to wait for it
                await asyncio.sleep(0.01)
        return router

    yield start
    for stop in reversed(running):
        await stop()


async def keep_asking(client, key, seen, enough):
    while not enough.is_set():
        await seen.ask(client, key)
        await asyncio.sleep(0.25)  # a client that is refused comes back far too early


@pytest.mark.parametrize(
    ("admission", "bound", "reason"),
    [
        pytest.param({"queue_requests": 16, "max_wait": None}, 16, "queue_full", id="short-queue"),
        pytest.param({"max_wait": 1.0}, 1024, "predicted_wait", id="short-wait"),
    ],
)
@pytest.mark.timeout(300)  # both ends of many requests, on a busy machine
async def test_overload(start, keys, admission, bound, reason, monkeypatch):
    router = await start(**admission)
    longest, peak = 0, WaitingRoom._after_change

    def spy(room):
        nonlocal longest
        longest = max(longest, len(room.queue))
        peak(room)

    monkeypatch.setattr(WaitingRoom, "_after_change", spy)
    before = _refusals(reason)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=router.addresses.rest, timeout=60, limits=limits
    ) as client:
        # One request alone, so that the fleet's rate is known; it is not counted.
        await Seen().ask(client, keys["modest"])
        seen = {tenant: Seen() for tenant in CLIENTS}
        enough, marks = asyncio.Event(), []
        async with asyncio.TaskGroup() as group:
            for tenant, number in CLIENTS.items():
                for _ in range(number):
                    group.create_task(keep_asking(client, keys[tenant], seen[tenant], enough))
            for limit in (FILLED, FILLED + COUNTED):
                while sum(each.statuses[200] for each in seen.values()) < limit:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                marks.append({tenant: each.tokens for tenant, each in seen.items()})
            enough.set()
        served = {tenant: marks[1][tenant] - marks[0][tenant] for tenant in CLIENTS}
        for tenant, each in seen.items():
            print(tenant, each.statuses, served[tenant], _spread(each))  # noqa: T201  pytest -s
        last = Seen()
        await last.ask(client, keys["eager"])
        assert last.statuses == {200: 1}  # it is over when it is over
    eager, modest = seen["eager"], seen["modest"]
    for each in (eager, modest):
        assert set(each.statuses) == {200, 429}
        # Accepted ones were served in full.
        assert each.tokens == TOKENS * each.statuses[200]
        assert min(each.retry_after) >= 1
    # Refused before any work, not after a wait: far below what those that are served take.
    refused = sorted(eager.refused_after + modest.refused_after)
    answered = sorted(eager.served_after + modest.served_after)
    assert refused[len(refused) // 2] < answered[len(answered) // 2] / 2
    assert _refusals(reason) > before
    assert 0 < longest <= bound
    # Equal weights: equal shares, however often one of them asks.
    assert abs(served["eager"] - served["modest"]) <= 0.1 * sum(served.values()) / 2
    # Nothing is left behind.
    assert router.client.inflight_requests == 0
    assert router._admission._predictor.outstanding_tokens == 0
    assert REGISTRY.get_sample_value("moe_admission_queue_tokens") == 0


async def test_who_waits_is_told_when_the_router_stops(start, keys):
    router = await start()
    async with httpx.AsyncClient(base_url=router.addresses.rest, timeout=60) as client:
        headers = {"authorization": f"Bearer {keys['eager']}"}
        body = {"model": "pocket-r1", "prompt": "abc", "max_tokens": 1000}
        asked = [
            asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
            for _ in range(SLOTS + 3)
        ]
        async with asyncio.timeout(30):
            while len(router._admission._room.queue) < 3:  # noqa: ASYNC110  the same
                await asyncio.sleep(0.01)
        await router.stop()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    # Those that run are cut off when the drain is over; those that wait are told.
    told = [
        answer.json()["error"]["reason"]
        for answer in answers
        if isinstance(answer, httpx.Response) and answer.status_code == 503
    ]
    assert told == ["NOT_READY"] * 3


def _refusals(reason):
    return REGISTRY.get_sample_value("moe_admission_refusals_total", {"reason": reason}) or 0


def _spread(seen):
    def points(values):
        values = sorted(values) or [0]
        return [round(values[int(share * (len(values) - 1))], 3) for share in (0.5, 0.99, 1)]

    return {"served": points(seen.served_after), "refused": points(seen.refused_after)}
