"""What a token costs in counts: these do not depend on how fast the machine is.

A fixed run, one router and one fake rank in this process over the real link. When a bound is
passed, something was added to the path of every token or of every request: make it cheaper, or
raise the bound and say why.
"""

import asyncio
import sys
from collections import Counter

from loadtest.grpc_target import GrpcTarget
from loadtest.rest_target import RestTarget
from loadtest.target import Ask, Message, Style
from serving.engine.router_link.send_queue import Outbox
from serving.h2grpc.connection import Connection
from serving.requests.stream import RequestStream
from tests.integration.edge.stand import stand_settings, standing

STREAMS, TOKENS = 8, 10
FOLDERS = (
    "/serving/edge/",
    "/serving/h2grpc/",
    "/serving/fleet/",
    "/serving/admission/",
    "/serving/routing/",
)


class Counts(Counter):
    """Counts calls of Python functions in the router's folders, from sys.setprofile."""

    def __call__(self, frame, event, _argument):
        if event == "call":
            file = frame.f_code.co_filename
            if any(folder in file for folder in FOLDERS):
                self["calls"] += 1

    def count(self, name, function):
        def counted(*arguments, **keywords):
            self[name] += 1
            return function(*arguments, **keywords)

        return counted


async def answers(target, tokens, endpoint="completions"):
    async def one(index):
        ask = Ask((Message("user", f"{index} count"),), tokens, f"s{index}")
        style = Style("pocket-r1", endpoint, ignore_eos=True)
        text = ""
        async for piece in target.send(ask, style):
            text += piece.text
        return text

    return await asyncio.gather(*(one(index) for index in range(STREAMS)))


async def counted(target, tokens, monkeypatch):
    """Return the counts of STREAMS streams of so many tokens."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_task", counts.count("tasks", loop.create_task))
        frames = Outbox.frames

        async def frames_counted(outbox):
            found = await frames(outbox)
            counts["frames"] += sum(bool(frame.deltas) for frame in found)
            counts["deltas"] += sum(len(frame.deltas) for frame in found)
            return found

        patch.setattr(Outbox, "frames", frames_counted)
        take = RequestStream.next

        async def taken(stream):
            output = await take(stream)
            counts["messages"] += 1
            return output

        patch.setattr(RequestStream, "next", taken)
        patch.setattr(Connection, "_flush", counts.count("writes", Connection._flush))
        sys.setprofile(counts)
        try:
            texts = await answers(target, tokens)
        finally:
            sys.setprofile(None)
    assert [len(text) for text in texts] == [tokens] * STREAMS
    return counts


ENGINE_TASKS = 2
"""The fake engine's own a token: it waits for two events."""
PER_TOKEN = {
    # Seen: up to 0.12; a frame a token would be 1.
    "frames": 0.5,
    "deltas": 1.01,
    "tasks": ENGINE_TASKS + 0.1,
}
CALLS_PER_DELTA = 7.0
"""Python functions of the router's own folders to take in what a rank sent. Seen: 6.5, of which
0.4 read it in slices."""
CALLS_PER_MESSAGE = {"rest": 18.8, "grpc": 34.4}
"""And to send it on: tokens that come while a client is slow go out in one message, so the two
are counted apart. Seen: 18.5, and 34 with those of our gRPC server."""
WRITES_PER_MESSAGE = 0.8
"""Writes to sockets over gRPC: streams of a connection share them. Seen: 0.5; 1 is one for each."""
CALLS_PER_REQUEST = 400
"""Beside those for what it answers. Seen: 300 and 350."""


async def test_counts_of_a_token_and_of_a_request(monkeypatch):
    settings = stand_settings(link={"load_interval": 60.0})
    async with standing(settings) as stand:
        addresses = stand.router.addresses
        targets = {"rest": RestTarget(addresses.rest), "grpc": GrpcTarget(addresses.grpc)}
        for protocol, target in targets.items():
            try:
                await answers(target, 2)  # what is built once is built
                short = await counted(target, TOKENS, monkeypatch)
                long = await counted(target, 5 * TOKENS, monkeypatch)
            finally:
                await target.close()
            more = 4 * TOKENS * STREAMS
            each = {name: (long[name] - short[name]) / more for name in long}
            # Counting works at all: there is something of everything.
            assert min(short.values()) > 0, protocol
            for name, most in PER_TOKEN.items():
                assert each[name] <= most, (protocol, name)
            bound = (
                CALLS_PER_DELTA * each["deltas"] + CALLS_PER_MESSAGE[protocol] * each["messages"]
            )
            assert each["calls"] <= bound, (protocol, each)
            if protocol == "grpc":
                assert each["writes"] <= WRITES_PER_MESSAGE * each["messages"], each
            answers_take = (
                CALLS_PER_DELTA * short["deltas"] + CALLS_PER_MESSAGE[protocol] * short["messages"]
            )
            assert (short["calls"] - answers_take) / STREAMS <= CALLS_PER_REQUEST, protocol
