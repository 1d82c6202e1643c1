"""Overload by two tenants, one of which sends requests far more often.

A whole router over real HTTP, with fake engines that take a fixed time for a token.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest
import yaml

from serving.admission.queue import FairQueue
from serving.admission.queue_runner import QueueRunner
from serving.edge.auth.keys import digest_of, new_key
from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.router.app import Router
from serving.settings import Settings
from serving.telemetry.metrics import REGISTRY
from tests.support.waiting import PATIENCE, eventually

TOKENS = 20
TOKEN_DELAY = 0.015
SLOTS = 4
CLIENTS = {"eager": 30, "modest": 10}
"""Number of clients, each of which sends its next request after a response. The fleet runs four
requests at a time, so the queue is never empty, regardless of the speed of the machine."""
RETRY = 0.5
"""Time until a client's next request, seconds; far too early after a rejection. Forty clients send
up to 80 requests/s, six times as many as the fleet serves."""
COUNTED, STRETCH = 80, 12
"""Placements while both tenants wait: the total, and the required length of an unbroken run."""


@dataclass
class Seen:
    """Responses to the clients of one tenant."""

    statuses: Counter = field(default_factory=Counter)
    tokens: int = 0
    retry_after: list = field(default_factory=list)

    async def ask(self, client, key):
        answer = await client.post(
            "/v1/completions",
            json={"model": "pocket-r1", "prompt": "abc", "max_tokens": TOKENS},
            headers={"authorization": f"Bearer {key}"},
        )
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            self.tokens += answer.json()["usage"]["completion_tokens"]
        else:
            self.retry_after.append(int(answer.headers["retry-after"]))
            assert answer.json()["error"]["reason"] == "OVERLOADED"


class Launches:
    """Counts the placements by tenant while both tenants are queued.

    How often only one of them waits depends on the machine, and placements at such times are not
    shared.
    """

    def __init__(self, monkeypatch):
        self.count = self.longest = self.worst = self._ahead = self._row = 0
        self._waiting = Counter()
        push, pop, discard = FairQueue.push, FairQueue.pop, FairQueue.discard

        def pushed(queue, item, now):
            push(queue, item, now)
            self._waiting[item.tenant] += 1

        def popped(queue, now):
            both = all(self._waiting[tenant] for tenant in CLIENTS)
            item = pop(queue, now)
            self._waiting[item.tenant] -= 1
            self._note(item.tenant, both=both)
            return item

        def discarded(queue, item):
            self._waiting[item.tenant] -= item in queue
            discard(queue, item)

        monkeypatch.setattr(FairQueue, "push", pushed)
        monkeypatch.setattr(FairQueue, "pop", popped)
        monkeypatch.setattr(FairQueue, "discard", discarded)

    def _note(self, tenant, *, both):
        if not both:
            self._ahead = self._row = 0
            return
        self.count += 1
        self._row += 1
        self._ahead += 1 if tenant == "eager" else -1
        self.longest = max(self.longest, self._row)
        self.worst = max(self.worst, abs(self._ahead))


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
        # Ageing depends on the machine: a request that waits long leaves its class for another.
        admission = {"ageing": 3600.0, **admission}
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
        await eventually(lambda: router.membership.ready)
        return router

    yield start
    for stop in reversed(running):
        await stop()


async def keep_asking(client, key, seen, enough):
    while not enough.is_set():
        await seen.ask(client, key)
        await asyncio.sleep(RETRY)


@pytest.mark.parametrize(
    ("admission", "bound", "reason"),
    [
        pytest.param({"queue_requests": 16, "max_wait": None}, 16, "queue_full", id="short-queue"),
        pytest.param({"max_wait": 1.0}, 1024, "predicted_wait", id="short-wait"),
    ],
)
async def test_overload(start, keys, admission, bound, reason, monkeypatch):
    router = await start(**admission)
    longest, peak = 0, QueueRunner._after_change

    def spy(runner):
        nonlocal longest
        longest = max(longest, len(runner.queue))
        peak(runner)

    monkeypatch.setattr(QueueRunner, "_after_change", spy)
    launches = Launches(monkeypatch)
    before = _refusals(reason)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=router.addresses.rest, timeout=PATIENCE, limits=limits
    ) as client:
        # One request alone, so that the fleet's rate is known; not counted.
        await Seen().ask(client, keys["modest"])
        seen = {tenant: Seen() for tenant in CLIENTS}
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for tenant, number in CLIENTS.items():
                for _ in range(number):
                    group.create_task(keep_asking(client, keys[tenant], seen[tenant], enough))
            while launches.count < COUNTED or launches.longest < STRETCH:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            enough.set()
        for tenant, each in seen.items():
            print(tenant, each.statuses, launches.longest, launches.worst)  # noqa: T201  pytest -s
        last = Seen()
        await last.ask(client, keys["eager"])
        assert last.statuses == {200: 1}  # ends by itself
    eager, modest = seen["eager"], seen["modest"]
    for each in (eager, modest):
        assert set(each.statuses) == {200, 429}
        # Accepted requests were served completely.
        assert each.tokens == TOKENS * each.statuses[200]
        assert min(each.retry_after) >= 1
    assert _refusals(reason) > before
    assert 0 < longest <= bound
    # Equal weights: they alternate, regardless of how many requests one of them sends.
    assert launches.worst <= 2
    # Nothing is left behind.
    assert router.client.inflight_requests == 0
    assert router.admission.outstanding_tokens == 0
    assert REGISTRY.get_sample_value("moe_admission_queue_tokens") == 0


async def test_who_waits_is_told_when_the_router_stops(start, keys):
    router = await start()
    async with httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE) as client:
        headers = {"authorization": f"Bearer {keys['eager']}"}
        body = {"model": "pocket-r1", "prompt": "abc", "max_tokens": 1000}
        requests = [
            asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
            for _ in range(SLOTS + 3)
        ]
        await eventually(lambda: router.admission.queue_length >= 3)
        await router.stop()
        answers = await asyncio.gather(*requests, return_exceptions=True)
    # Running requests are cut off at the end of the drain; queued ones get an error.
    reasons = [
        answer.json()["error"]["reason"]
        for answer in answers
        if isinstance(answer, httpx.Response) and answer.status_code == 503
    ]
    assert reasons == ["NOT_READY"] * 3


def _refusals(reason):
    return REGISTRY.get_sample_value("moe_admission_refusals_total", {"reason": reason}) or 0
