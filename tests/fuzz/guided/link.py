"""Damaged messages on the link.

From a rank, they end at most its own link; from a router, at most a request.
"""

import asyncio
import contextlib
import json
import random
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from prometheus_client import generate_latest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.clock import SystemClock
from serving.edge.fleet_view import FleetView
from serving.engine.codec import decode_params, decode_parser_kwargs
from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link import request_runner as work_module
from serving.engine.router_link.request_runner import RequestRunner
from serving.engine.router_link.send_queue import SendQueue
from serving.errors import InvalidRequest, ServingError
from serving.fleet import join_server as link_module
from serving.fleet.collector import fleet_registry
from serving.fleet.join_server import LinkServer
from serving.fleet.membership import FleetMembership
from serving.fleet.models import FleetModel, FleetModels
from serving.h2grpc import call, connection
from serving.h2grpc.connection import Connection
from serving.h2grpc.server import Server
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2
from serving.requests.output_buffer import OutputBuffer
from serving.requests.stream import RequestStream
from serving.requests.token_timings import TokenTimings
from serving.routing.decision import RoutingDecision, RoutingRequest
from serving.routing.scheduler import decide
from serving.routing.scorers import AffinityHints
from serving.routing.snapshot import RankId
from serving.settings import FleetSettings, LinkSettings, RouterSettings, RoutingSettings, Settings
from tests.fuzz import grpc_cases, mutators
from tests.fuzz.guided.finding import demand, errors_of
from tests.fuzz.guided.transport import Transport
from tests.unit.h2grpc.raw_client import ClientH2, message, request

PACKAGES = ("serving.fleet", "serving.routing", "serving.link", "serving.edge.fleet_view")
_LENGTH = struct.Struct(">H")
_HELLO, _GREETED = 0, 1
"""First byte: the messages start with the input's Hello, or a valid one precedes them."""
_TURNS = 60


def cut(data: bytes) -> Iterator[bytes]:
    """Split an input into messages, each with a two-byte length prefix."""
    while len(data) >= _LENGTH.size:
        (size,) = _LENGTH.unpack_from(data)
        yield data[_LENGTH.size : _LENGTH.size + size]
        data = data[_LENGTH.size + size :]


def joined(messages: Iterable[bytes]) -> bytes:
    """Return an input of these messages."""
    return b"".join(_LENGTH.pack(len(each) % 2**16) + each[: 2**16 - 1] for each in messages)


def _changed(rng: random.Random, data: bytes, kind: Any) -> bytes:
    """Change, repeat, drop or swap some of an input's messages."""
    messages = list(cut(data)) or [b""]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(messages))
        match rng.randrange(6):
            case 0:
                messages.insert(rng.randrange(len(messages) + 1), messages[at])
            case 1 if len(messages) > 1:
                del messages[at]
            case 2:
                messages[at] = mutators.bytes_changed(rng, messages[at])
            case _:
                try:
                    given = kind.FromString(messages[at])
                except DecodeError:
                    given = kind()
                for _ in range(rng.choice((1, 2, 4))):
                    grpc_cases._change(rng, given)
                messages[at] = given.SerializeToString()
    return joined(messages)


def _hello(group: str, **fields: Any) -> link_pb2.Hello:
    fields = {"epoch": "e", "rank": 0, "world_size": 1, **fields}
    return link_pb2.Hello(
        protocol_version=PROTOCOL_VERSION,
        model="m",
        model_fingerprint="f",
        group_id=group,
        **fields,
    )


_HEALTHY = link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY, kv_usage=0.5)


class _Still:
    """A clock on which no peer is silent for long, regardless of how slow the machine is."""

    def monotonic(self) -> float:
        return 100.0

    def time(self) -> float:
        return 1e9


class Link:
    """Messages from a rank to a router."""

    name = "link"
    packages = PACKAGES

    async def open(self) -> None:
        """Listen, and let a good rank join."""
        self._stack = contextlib.ExitStack()
        self._errors = self._stack.enter_context(errors_of(connection, call))
        self._links = self._stack.enter_context(errors_of(link_module))
        self.membership = FleetMembership(FleetSettings(history_groups=3), _Still())
        self.pages = fleet_registry(self.membership.snapshot)
        self.servicer = LinkServer(
            FleetModels([FleetModel("m", self.membership, "f")]),
            LinkSettings(hello_timeout=5),
            RouterSettings(join_port=0),
            clock=_Still(),
        )
        await self.servicer.start()
        server = self.servicer._server
        assert server is not None
        self.server: Server = server
        self.good = _Rank(self.server)
        self.good.send(link_pb2.RankMessage(hello=_hello("good"), load=_HEALTHY))
        await self._until(lambda: self.membership.handle(RankId("good", "e", 0)) is not None)
        self.good.send(link_pb2.RankMessage(load=_HEALTHY))
        await self._until(lambda: self.membership.ready)

    async def close(self) -> None:
        self.good.close()
        await self.servicer.stop()
        self._stack.close()

    async def _until(self, so: Any) -> None:
        for _ in range(20 * _TURNS):
            if so():
                return
            await asyncio.sleep(0)
        demand(condition=False, what="the good rank gets no requests")

    def seeds(self) -> Iterable[bytes]:
        choice = link_pb2.ChoiceDelta(token_ids=[1, 2])
        logprobs = link_pb2.PositionLogprobs(token_ids=[1], logprobs=[-0.5], vocab_ranks=[1])
        last = link_pb2.ChoiceDelta(
            token_ids=[3], finish_reason=link_pb2.ChoiceDelta.STOP, logprobs=[logprobs]
        )
        error = link_pb2.RequestError(code=link_pb2.RequestError.INVALID_REQUEST, message="x")
        frame = link_pb2.RankMessage
        seen = link_pb2.Delta
        events = link_pb2.KvEvents(block_size=16, sequence=1, reset=True, stored=[1, 2])
        more = link_pb2.KvEvents(block_size=16, sequence=2, removed=[1], stored=[3])
        layer = link_pb2.LayerExpertLoad(layer="l", tokens=[1, 2])
        load = link_pb2.LoadSnapshot(
            health=1, kv_usage=0.25, step_seconds=0.01, experts=[layer], busy_seconds_total=3.0
        )
        frames = [
            frame(load=load),
            frame(deltas=[seen(request_id="r0", choices=[choice], prompt_tokens=3)]),
            frame(deltas=[seen(request_id="r1", choices=[last, last], finished=True)]),
            frame(deltas=[seen(request_id="r2", error=error, finished=True)], kv_events=events),
            frame(kv_events=more, pong=link_pb2.Pong(number=1)),
            frame(drain=link_pb2.Drain(reason="x")),
        ]
        encoded = [each.SerializeToString() for each in frames]
        yield bytes((_GREETED,)) + joined(encoded)
        for each in encoded:
            yield bytes((_GREETED,)) + joined([encoded[0], each])
        experts = link_pb2.ExpertPlacement(total=4, local_ids=[0, 1])
        capacity = link_pb2.Capacity(max_model_len=64, max_num_seqs=4, kv_block_size=16)
        hello = frame(hello=_hello("bad", experts=experts, capacity=capacity, node="n", pid=1))
        yield bytes((_HELLO,)) + joined([hello.SerializeToString(), *encoded])

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        return data[:1] + _changed(rng, data[1:], link_pb2.RankMessage)

    async def run(self, data: bytes) -> None:
        self._errors.found.clear()
        self._links.lines.clear()
        bad = _Rank(self.server)
        if data[:1] != bytes((_HELLO,)):
            bad.send(link_pb2.RankMessage(hello=_hello("bad")))
            await self._turns(8)
        streams = self._submitted()
        for each in cut(data[1:]):
            bad.send(each)
            await self._turns(2)
            streams = streams or self._submitted()
            self._look()
        await self._turns(_TURNS)
        for stream in streams:
            await self._taken(stream)
        bad.close()
        await self._turns(_TURNS)
        demand(not self._errors.found, f"an error was logged: {self._errors.found}")
        for line in self._links.lines:
            # Invalid bytes end the call; valid messages are rejected by the request.
            failed = "its connection failed" in line and "AbortError" not in line
            demand(not failed, f"a message closed a link: {line}")
        for group in self.membership.snapshot().groups:
            demand(group.group_id == "good", f"group {group.group_id!r} outlives its link")
        for stream in streams:
            demand(stream.done, "a request outlives its rank")
        await self._good_works()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def _submitted(self) -> list[RequestStream]:
        """Send requests of three kinds to the rank under test, if it has joined."""
        handles = [
            self.membership.handle(rank.rank_id)
            for group in self.membership.snapshot().groups
            for rank in group.ranks
            if group.group_id != "good"
        ]
        found = []
        for handle in handles[:1]:
            for number, params in enumerate(
                (
                    SamplingParams(),
                    SamplingParams(n=2, logprobs=1),
                    SamplingParams(prompt_logprobs=1),
                )
            ):
                stream = _stream(f"r{number}", params)
                assert handle is not None
                with contextlib.suppress(ServingError):  # it was closed meanwhile
                    handle.submit(stream)
                    found.append(stream)
        return found

    def _look(self) -> None:
        """Render the pages, and choose a rank."""
        snapshot = self.membership.snapshot()
        view = FleetView(snapshot, "m", 0)
        json.dumps(view.to_json(), allow_nan=False)  # as on the page
        view.to_proto()
        generate_latest(self.pages)
        settings = RoutingSettings()
        wanted = RoutingRequest(prompt_tokens=10, output_tokens=10)
        found = decide(snapshot, wanted, settings, AffinityHints(), 0)
        demand(isinstance(found, RoutingDecision), f"no rank accepts a request: {found}")

    async def _taken(self, stream: RequestStream) -> None:
        """Read the output, as a caller does."""
        try:
            while True:
                async with asyncio.timeout(0):
                    output = await stream.next()
                if output.finished:
                    return
        except (TimeoutError, ServingError):
            pass

    async def _good_works(self) -> None:
        handle = self.membership.handle(RankId("good", "e", 0))
        demand(handle is not None, "the good rank was removed")
        assert handle is not None
        stream = _stream("g", SamplingParams())
        handle.submit(stream)
        await self._until(
            lambda: b"g" in {each.request_id.encode() for each in self.good.submits()}
        )
        choice = link_pb2.ChoiceDelta(token_ids=[1], finish_reason=1)
        delta = link_pb2.Delta(request_id="g", choices=[choice], finished=True)
        self.good.send(link_pb2.RankMessage(deltas=[delta], load=_HEALTHY))
        await self._until(lambda: stream.done)
        output = await stream.next()
        demand(output.outputs[0].token_ids == [1], "the good rank's output was lost")
        self.good.received.clear()


def _stream(name: str, params: SamplingParams) -> RequestStream:
    prompt = [1, 2, 3]
    work = link_pb2.Submit(request_id=name, prompt_token_ids=prompt)
    buffer = OutputBuffer(name, prompt, params, RequestOutputKind.DELTA)
    return RequestStream(work, buffer, TokenTimings(SystemClock()), expected_output=10)


class _Rank:
    """A rank's connection without a socket."""

    def __init__(self, server: Server) -> None:
        self.connection = Connection(server)
        self.transport = Transport(self.connection)
        self.client = ClientH2()
        self.received = bytearray()
        """DATA of the call."""
        self.connection.connection_made(self.transport)
        self.client.initiate_connection()
        self.client.increment_flow_control_window(2**30)
        self.client.send_headers(1, request("/serving.link.v1.RouterService/Join"))
        self._pass_on()

    def send(self, sent: link_pb2.RankMessage | bytes) -> None:
        """Send one message, valid or not."""
        data = sent if isinstance(sent, bytes) else sent.SerializeToString()
        framed = message(data)
        self._take_in()
        if self.transport.closing or self.client.streams[1].closed:
            return
        while framed:
            room = min(self.client.local_flow_control_window(1), 2**14)
            if room <= 0:
                return
            self.client.send_data(1, framed[:room])
            framed = framed[room:]
            self._pass_on()
            self._take_in()

    def submits(self) -> list[link_pb2.Submit]:
        """Return the received requests."""
        self._take_in()
        found: list[link_pb2.Submit] = []
        data = bytes(self.received)
        while len(data) >= 5:
            size = int.from_bytes(data[1:5])
            found += link_pb2.RouterMessage.FromString(data[5 : 5 + size]).submits
            data = data[5 + size :]
        return found

    def close(self) -> None:
        self.transport.close()

    def _pass_on(self) -> None:
        data = self.client.data_to_send()
        if data and not self.transport.closing:
            self.connection.data_received(data)

    def _take_in(self) -> None:
        from h2.events import DataReceived

        data = bytes(self.transport.written)
        self.transport.written.clear()
        for event in self.client.receive_data(data):
            if isinstance(event, DataReceived):
                self.received += event.data
                if not self.client.streams[1].closed:
                    self.client.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        self._pass_on()


class Submits:
    """Messages from a router to a rank."""

    name = "submits"
    packages = (
        "serving.engine.router_link.request_runner",
        "serving.engine.router_link.send_queue",
        "serving.engine.codec",
    )

    async def open(self) -> None:
        self._stack = contextlib.ExitStack()
        self._errors = self._stack.enter_context(errors_of(work_module))
        self.engine = FakeEngine(Settings(engine={"kind": "fake", "max_model_len": 64}))
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.shutdown()
        self._stack.close()

    def seeds(self) -> Iterable[bytes]:
        import msgspec

        for params in (SamplingParams(max_tokens=3), SamplingParams(n=2, logprobs=2, seed=1)):
            work = link_pb2.Submit(
                request_id="a",
                prompt_token_ids=[1, 2, 3],
                sampling_params=msgspec.msgpack.encode(params),
                reasoning_parser_kwargs=msgspec.msgpack.encode({"chat_template_kwargs": {}}),
                trace_headers={"traceparent": "x"},
            )
            frame = link_pb2.RouterMessage(submits=[work], ping=link_pb2.Ping(number=1))
            stop = link_pb2.RouterMessage(abort_request_ids=["a"])
            yield joined([frame.SerializeToString(), stop.SerializeToString()])
            yield joined([frame.SerializeToString()])

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        return _changed(rng, data, link_pb2.RouterMessage)

    async def run(self, data: bytes) -> None:
        self._errors.found.clear()
        send_queue = SendQueue(1000, 2**20)
        trouble: list[bool] = []
        runner = RequestRunner(
            self.engine, send_queue, prefix="x/", report_trouble=lambda: trouble.append(True)
        )
        wanted = 0
        for each in cut(data):
            try:
                frame = link_pb2.RouterMessage.FromString(each)
            except DecodeError:
                continue
            for work in frame.submits:
                for decode in (decode_params, decode_parser_kwargs):
                    with contextlib.suppress(InvalidRequest):
                        decode(work)
                runner.submit(work)
                wanted += 1
            for request_id in frame.abort_request_ids:
                runner.abort(request_id)
                wanted -= 1
            await asyncio.sleep(0)
        await runner.idle()
        demand(not trouble, "the engine is reported as failed")
        demand(not self._errors.found, f"an error was logged: {self._errors.found}")
        if wanted > 0 and not send_queue.overflowed.is_set():
            frames = await send_queue.frames()
            ends = sum(delta.finished for frame in frames for delta in frame.deltas)
            demand(ends >= wanted, f"{ends} of {wanted} requests ended")
        send_queue.close()
