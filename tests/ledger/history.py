"""Requests over every protocol while router and database are killed, and a final comparison.

Clients count the tokens of each request that they saw finish, from the response alone. Afterwards,
the ledger must have exactly one record of each of these requests, with the same counts, and no
duplicate record.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
from sqlalchemy import select

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.ledger.database import LedgerDatabase
from serving.ledger.schema import REQUESTS
from serving.settings import LedgerSettings
from tests.ledger.fleet import READY
from tests.support.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
Counts = tuple[int, int, int]
"""Prompt, cached and output tokens."""

_CHAT = {"model": "pocket-r1", "ignore_eos": True}
_LOST = (aiohttp.ClientError, grpc.aio.AioRpcError, OSError, asyncio.IncompleteReadError)


class Fleet:
    """The router's process, which can be killed and restarted on the same ports."""

    def __init__(self, ledger, ranks=1, **groups):
        self._groups = {
            **groups,
            "ranks": ranks,
            "ledger": ledger,
            "telemetry": {"log_level": "error", "log_format": "json"},
            "router": {},
            "engine": {"args": {"enable_prefix_caching": True}},
        }
        self.addresses = None
        self.ready = asyncio.Event()
        self._forker = None
        self.kills = 0
        self._pid = None
        """Process of the running router; None: not running."""

    async def start(self):
        if self._forker is None:
            self._forker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.ledger.fleet"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
        self._forker.stdin.write(json.dumps(self._groups).encode() + b"\n")
        await self._forker.stdin.drain()
        async with asyncio.timeout(PATIENCE):
            while not (line := await self._forker.stdout.readline()).startswith(READY.encode()):
                assert line, "the router's process ended"
        self.addresses = json.loads(line.removeprefix(READY.encode()))
        self._pid = self.addresses["pid"]
        ports = ("rest_port", "grpc_port", "join_port")
        self._groups["router"] = {name: self.addresses[name] for name in ports}
        self.ready.set()

    async def kill(self):
        """Kill the router with SIGKILL, and start a new one."""
        self.ready.clear()
        await self._end(signal.SIGKILL)
        self.kills += 1
        await self.start()

    async def stop(self):
        """Stop the router, which inserts the remaining records."""
        await self._end(signal.SIGTERM)

    async def close(self):
        if self._pid is not None:
            await self._end(signal.SIGKILL)
        if self._forker is not None:
            self._forker.stdin.close()
            await self._forker.wait()

    async def _end(self, number):
        pid, self._pid = self._pid, None
        os.kill(pid, number)
        await eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the router")


@dataclass
class History:
    """The requests, and the clients' counts."""

    fleets: Sequence[Fleet]
    """The routers; each client uses one of them."""
    seed: int
    finished: dict[str, Counts] = field(default_factory=dict)
    """Counts of the requests that a client saw finish, by request id."""
    lost: int = 0
    """Attempts that ended with an error, whose tokens a client cannot count."""
    _number: int = 0

    async def run(
        self, number: int, concurrency: int, events: Sequence[tuple[int, Callable]]
    ) -> None:
        """Finish ``number`` requests; lost ones are repeated with another request id.

        Args:
            number: Requests to finish.
            concurrency: Number of concurrent requests.
            events: Coroutine functions, with the number of finished requests at which to call each.
        """
        self._number = number
        numbers = iter(range(number))
        # Clients must not wait for seconds before they retry when the next router is ready.
        options = [("grpc.max_reconnect_backoff_ms", 100)]
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            rest = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            stubs = []
            for fleet in self.fleets:
                channel = grpc.aio.insecure_channel(fleet.addresses["grpc"], options=options)
                await stack.enter_async_context(channel)
                stubs.append(inference_pb2_grpc.InferenceServiceStub(channel))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            group.create_task(self._happen(events))
            for worker in range(concurrency):
                at = worker % len(self.fleets)
                work = self._work(worker, numbers, self.fleets[at], rest, stubs[at])
                group.create_task(work)

    async def reach(self, number: int) -> None:
        """Wait until ``number`` requests, at most all, are finished."""
        await eventually(lambda: len(self.finished) >= min(number, self._number))

    async def _happen(self, events):
        for at, event in events:
            await self.reach(at)
            await event()

    async def _work(self, worker, numbers, fleet, rest, stub):
        rng = random.Random(f"{self.seed}/{worker}")
        kinds = (self._rest_whole, self._rest_stream, self._grpc_whole, self._grpc_stream)
        for number in numbers:
            kind = kinds[number % len(kinds)]
            # A common prefix, whose tokens the fake rank caches.
            text = "abc " * rng.randint(0, 20) + "".join(rng.choices("abc ", k=rng.randint(1, 60)))
            tokens = rng.randint(1, 6)
            for attempt in itertools.count():
                await fleet.ready.wait()
                name = f"{number}-{attempt}"
                try:
                    client = (rest, fleet) if kind in kinds[:2] else stub
                    counts = await kind(client, name, text, tokens)
                except _LOST:
                    self.lost += 1
                    await asyncio.sleep(0.02)
                    continue
                assert counts is not None
                self.finished[name] = counts
                break

    async def _rest_whole(self, client, name, text, tokens):
        async with self._post(client, name, text, tokens) as response:
            body = await response.json()
            return _counts(body["usage"])

    async def _rest_stream(self, client, name, text, tokens):
        usage = None
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with self._post(client, name, text, tokens, **options) as response:
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    return _counts(usage)
                if b'"usage":{' in line:
                    usage = json.loads(line.removeprefix(b"data: "))["usage"]
        raise aiohttp.ClientPayloadError("the stream ended without [DONE]")

    def _post(self, client, name, text, tokens, **more):
        rest, fleet = client
        return rest.post(
            f"{fleet.addresses['rest']}/v1/chat/completions",
            json={
                **_CHAT,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": tokens,
                **more,
            },
            headers={"x-request-id": name},
            raise_for_status=True,
            timeout=aiohttp.ClientTimeout(PATIENCE),
        )

    async def _grpc_whole(self, stub, name, text, tokens):
        answer = await stub.Chat(_chat(text, tokens), metadata=(("x-request-id", name),))
        return _counts_of(answer.usage)

    async def _grpc_stream(self, stub, name, text, tokens):
        usage = None
        stream = stub.ChatStream(_chat(text, tokens), metadata=(("x-request-id", name),))
        async for message in stream:
            if message.HasField("usage"):
                usage = message.usage
        return _counts_of(usage)


def _chat(text, tokens):
    request = pb.ChatRequest(
        model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content=text)]
    )
    request.sampling.max_tokens = tokens
    return request


def _counts(usage):
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return usage["prompt_tokens"], cached, usage["completion_tokens"]


def _counts_of(usage):
    return usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens


@dataclass(frozen=True)
class Comparison:
    """The ledger compared with the clients' counts."""

    finished: int
    clients: Counts
    """Sums over the requests that clients saw finish."""
    ledger: Counts
    """Sums over the same requests in the ledger."""
    missing: Sequence[str]
    """Finished requests without a record."""
    different: Sequence[str]
    """Finished requests whose record has different counts."""
    repeated: Sequence[str]
    """Requests with more than one record."""
    unseen: int
    """Records of requests that no client saw finish."""

    @property
    def exact(self):
        return not (self.missing or self.different or self.repeated) and (
            self.clients == self.ledger
        )


def compare(ledgers: Sequence[LedgerSettings], finished: dict[str, Counts]) -> Comparison:
    """Compare the databases with the clients' counts."""
    table = REQUESTS.c
    columns = (table.request_id, table.prompt_tokens, table.cached_tokens, table.output_tokens)
    rows = []
    for settings in ledgers:
        database = LedgerDatabase(settings)
        with database.connect() as connection:
            rows += [(row[0], tuple(row[1:])) for row in connection.execute(select(*columns))]
        database.close()
    recorded = dict(rows)
    here = [recorded[name] for name in finished if name in recorded]
    return Comparison(
        finished=len(finished),
        clients=_sum(finished.values()),
        ledger=_sum(here),
        missing=[name for name in finished if name not in recorded],
        different=[
            name for name in finished if recorded.get(name, finished[name]) != finished[name]
        ],
        repeated=[name for name, times in Counter(name for name, _ in rows).items() if times > 1],
        unseen=sum(name not in finished for name, _ in rows),
    )


def _sum(counts):
    return tuple(map(sum, zip(*counts, strict=True))) or (0, 0, 0)
