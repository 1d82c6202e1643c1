"""After thousands of requests of all kinds, all counts are unchanged: nothing leaks.

``SOAK_REQUESTS`` sets their number (``make soak``: 50,000).
"""

import asyncio
import collections
import gc
import os
import random

import aiohttp
import grpc
import grpc.aio
import psutil
import pytest

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.telemetry import metrics
from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import eventually
from tests.support.watchdog import CROWDED, LIMIT, Watchdog

pytestmark = pytest.mark.timeout(3600)

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "2400"))
AT_ONCE = 24
WARM_UP = 600
"""Requests before the first measurement, which fill caches, pools and arenas."""
GROWTH = 8 * 2**10
"""Maximum growth per request in the second half, bytes. A leaked request would hold at least its
prompt, output buffer and tasks, about 20 kB."""

POOLS = 8
"""Number of threads that can be started late: those of asyncio's and gRPC's pools, which start
another one when all are busy at the same time, up to their bounds. The descriptors include sockets
and timers of such threads. One leaked by every hundredth request would be 24."""

_LOOKS = 200
_SAME = 6
"""Number of polls, at twenty per second."""

PROMPT = "What is 17+25? " * 4


class Traffic:
    """A seeded mix of requests over both protocols."""

    def __init__(self, stand, session, channel, seed):
        self.rng = random.Random(seed)
        self.url = f"{stand.router.addresses.rest}/v1/"
        self.session = session
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.outcomes = collections.Counter()

    async def one(self):
        kind = self.rng.choices(KINDS, WEIGHTS)[0]
        self.outcomes[kind, await getattr(self, kind)()] += 1

    async def rest(self, path="completions", headers=None, leave_after=None, **body):
        body = {"model": "pocket-r1", "max_tokens": 4, **body}
        if path == "completions":
            body.setdefault("prompt", PROMPT)
        else:
            body.setdefault("messages", [{"role": "user", "content": PROMPT}])
        async with self.session.post(self.url + path, json=body, headers=headers) as answer:
            if leave_after is None:
                await answer.read()
            else:
                for _ in range(leave_after):
                    await answer.content.readline()
                answer.close()
            return answer.status

    async def whole(self):
        return await self.rest()

    async def chat(self):
        return await self.rest("chat/completions", logprobs=True, top_logprobs=2)

    async def stream(self):
        return await self.rest("chat/completions", stream=True)

    async def two(self):
        return await self.rest(n=2, stream=self.rng.random() < 0.5)

    async def cut(self):
        return await self.rest(stream=True, max_tokens=300, leave_after=self.rng.choice((0, 1, 5)))

    async def abandoned(self):
        try:
            async with asyncio.timeout(self.rng.choice((0.005, 0.05))):
                return await self.rest(max_tokens=300)
        except TimeoutError:
            return "left"

    async def late(self):
        timeout = {"x-request-timeout-ms": str(self.rng.choice((1, 20)))}
        return await self.rest(max_tokens=300, headers=timeout, stream=self.rng.random() < 0.5)

    async def bad(self):
        wrong = ({"temperature": -1}, {"prompt": []}, {"model": "gpt-9"}, {"max_tokens": "x"})
        return await self.rest(**self.rng.choice(wrong))

    async def rpc(self, timeout=None, leave_after=None, **sampling):
        sampling = pb.SamplingParams(**{"max_tokens": 4, **sampling})
        request = pb.CompleteRequest(model="pocket-r1", text=PROMPT, sampling=sampling)
        try:
            if self.rng.random() < 0.5 and leave_after is None:
                await self.stub.Complete(request, timeout=timeout)
                return "OK"
            call = self.stub.CompleteStream(request, timeout=timeout)
            async for _ in call:
                if leave_after is not None:
                    call.cancel()
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except asyncio.CancelledError:
            return "left"
        return "OK"

    async def rpc_good(self):
        return await self.rpc(n=self.rng.choice((1, 2)))

    async def rpc_cut(self):
        return await self.rpc(max_tokens=300, leave_after=1)

    async def rpc_late(self):
        return await self.rpc(max_tokens=300, timeout=self.rng.choice((0.001, 0.02)))

    async def rpc_bad(self):
        return await self.rpc(temperature=-1)


KINDS = {
    "whole": 20,
    "chat": 8,
    "stream": 12,
    "two": 6,
    "cut": 6,
    "abandoned": 4,
    "late": 4,
    "bad": 8,
    "rpc_good": 20,
    "rpc_cut": 4,
    "rpc_late": 4,
    "rpc_bad": 4,
}
KINDS, WEIGHTS = tuple(KINDS), tuple(KINDS.values())


def left_over(stand):
    """Return the numbers that a request that was not cleaned up would change."""
    membership = stand.router.membership.snapshot()
    links = [link for group in stand.router.membership._groups.values() for link in _links(group)]
    return {
        "in flight at the edge": stand.router.gate.inflight,
        "in flight in the fleet": stand.router.client.inflight_requests,
        "in flight on the ranks": membership.inflight_requests,
        "outstanding tokens": sum(
            rank.outstanding_tokens for group in membership.groups for rank in group.ranks
        ),
        "streams": sum(len(link._streams) for link in links),
        "counted": sum(len(link._counted) + len(link._submits) for link in links),
        "in the engines": stand.engine_requests,
        "on the rank servers": sum(server.running_requests for server in stand.servers),
        "queue": stand.router.admission.queue_length,
        "predicted tokens": stand.router.admission.outstanding_tokens,
        "gauge": metrics.REGISTRY.get_sample_value("moe_inflight_requests"),
    }


def _links(group):
    return [member.handle for member in group.members.values()]


async def _still(process):
    """Wait until the numbers are stable; closed connections end with a delay."""
    seen, same = None, 0
    for _ in range(_LOOKS):
        now = (process.num_fds(), len(asyncio.all_tasks()))
        same = same + 1 if now == seen else 0
        if same == _SAME:
            return
        seen = now
        await asyncio.sleep(0.05)


async def measure(stand):
    await eventually(lambda: stand.idle, "the end of all requests")
    process = psutil.Process()
    await _still(process)
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "rss": process.memory_info().rss,
    }


async def send(stand, count, seed):
    """Send the requests with new clients, and close the clients."""
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel,
    ):
        traffic = Traffic(stand, session, channel, seed)
        left = iter(range(count))

        async def work():
            for _ in left:
                await traffic.one()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    return traffic.outcomes


async def test_nothing_is_left_of_thousands_of_requests(capsys):
    settings = stand_settings(group={"data_parallel": 2})
    async with standing(settings) as stand:
        await send(stand, WARM_UP, seed=0)
        before = await measure(stand)
        clean = left_over(stand)
        assert set(clean.values()) == {0}
        with Watchdog(limit=LIMIT if "SOAK_REQUESTS" in os.environ else CROWDED) as dog:
            first = await send(stand, REQUESTS // 2, seed=1)
            middle = await measure(stand)
            second = await send(stand, REQUESTS - REQUESTS // 2, seed=2)
            after = await measure(stand)
        outcomes = first + second
        if "SOAK_REQUESTS" in os.environ:
            with capsys.disabled():
                print("", before, middle, after, sep="\n")  # noqa: T201
                print(*sorted(outcomes.items(), key=str), sep="\n")  # noqa: T201
        assert left_over(stand) == clean
        assert after["tasks"] == middle["tasks"] == before["tasks"]
        assert after["descriptors"] <= before["descriptors"] + POOLS
        assert after["threads"] <= before["threads"] + POOLS
        assert after["rss"] - middle["rss"] < GROWTH * (REQUESTS // 2)
        assert outcomes.total() == REQUESTS
        # All kinds of endings must have occurred; otherwise, the test would prove little.
        ends = {end for _, end in outcomes}
        assert {200, 400, 404, 504, "left", "OK", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"} <= ends
        assert not ends & {500, 503, "INTERNAL", "UNKNOWN", "UNAVAILABLE"}
        dog.check()
