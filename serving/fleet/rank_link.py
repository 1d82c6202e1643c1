"""The router's end of one rank's Join stream: sends requests, and delivers deltas to them."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from serving.clock import Clock
from serving.errors import GroupLost, InvalidRequest, Overloaded
from serving.fleet.membership import FleetMembership
from serving.fleet.rank_handle import LinkedStream
from serving.link.v1 import link_pb2
from serving.routing.snapshot import RankId
from serving.telemetry import metrics

Write = Callable[[link_pb2.RouterMessage], Awaitable[None]]


class RankLink:
    """A ``rank_handle.RankHandle`` on a Join stream.

    Requests and aborts collect in the send queue and are sent in one frame when the sender task
    runs. The queue is bounded: if the rank does not read its frames, new requests are rejected.
    """

    def __init__(
        self,
        rank_id: RankId,
        membership: FleetMembership,
        clock: Clock,
        *,
        send_limit: int,
        max_frame_bytes: int,
        silence_limit: float,
    ) -> None:
        """Start without requests.

        Args:
            rank_id: The rank at the other end.
            membership: Receives the rank's reports.
            clock: The router's clock.
            send_limit: Maximum number of requests in the send queue.
            max_frame_bytes: Maximum frame size; requests fill at most half of it.
            silence_limit: Time without a frame after which the link is closed, seconds.
        """
        self.rank_id = rank_id
        self.closed = asyncio.Event()
        self.close_reason = ""
        self._membership = membership
        self._clock = clock
        self._send_limit = send_limit
        # Half of the frame, because its other fields and protobuf's overhead also need space.
        self._frame_bytes = max_frame_bytes // 2
        self._silence_limit = silence_limit
        self._streams: dict[str, LinkedStream] = {}
        # Outstanding tokens of each request after its last frame, and their sum.
        self._counted: dict[str, int] = {}
        # Attributes rather than properties, because routing reads them for every candidate.
        self.inflight_requests = 0
        """Number of this router's requests on the rank."""
        self.outstanding_tokens = 0
        """Number of tokens that the rank still has to compute for these requests."""
        self.round_trip: float | None = None
        """Time from the last Ping to its Pong, seconds. None before the first Pong."""
        self._submits: dict[str, link_pb2.Submit] = {}
        self._aborts: list[str] = []
        self._completed: list[link_pb2.CompletedChoice] = []
        self._wake = asyncio.Event()
        self._ping_number = 0
        self._ping_due = False
        self._ping_sent_at: float | None = None
        self._heard_at = clock.monotonic()

    # -- RankHandle ---------------------------------------------------------------------

    def submit(self, stream: LinkedStream) -> None:
        """Queue a request for the rank.

        Raises:
            GroupLost: The link is closed.
            Overloaded: The send queue is full.
            InvalidRequest: The request exceeds the maximum frame size.
        """
        if self.closed.is_set():
            raise GroupLost(f"{self.rank_id} was lost: {self.close_reason}")
        if len(self._submits) >= self._send_limit:
            raise Overloaded(
                f"{self.rank_id} does not accept requests fast enough "
                f"({self._send_limit} are queued): try again later",
            )
        if (size := stream.work.ByteSize()) > self._frame_bytes:
            raise InvalidRequest(
                f"the request is {size} bytes on the link, the maximum is {self._frame_bytes}: "
                "send a shorter prompt",
            )
        self._streams[stream.request_id] = stream
        self.inflight_requests = len(self._streams)
        self._submits[stream.request_id] = stream.work
        self._count(stream)
        self._wake.set()

    def release(self, stream: LinkedStream) -> None:
        """Drop a request, and abort it on the rank if the rank may still run it."""
        if self._streams.get(stream.request_id) is not stream:
            return
        self._forget(stream)
        if stream.finished or self.closed.is_set():
            return
        if self._submits.pop(stream.request_id, None) is None:
            self._aborts.append(stream.request_id)
            self._wake.set()

    def fence(self, reason: str, *, planned: bool = False) -> None:
        """Fail all requests on the rank with GroupLost and abort them there."""
        for stream in tuple(self._streams.values()):
            self.release(stream)
            stream.fail(GroupLost(f"{reason}; the request can be retried", planned=planned))

    def close(self, reason: str) -> None:
        """End the link, which makes its Join call return."""
        if not self.closed.is_set():
            self.close_reason = reason
            self.closed.set()
            self._membership.prefixes.forget(self.rank_id)
            self._wake.set()

    # -- the wire -----------------------------------------------------------------------

    def receive(self, message: link_pb2.RankMessage) -> None:
        """Process a frame from the rank."""
        self._heard_at = self._clock.monotonic()
        metrics.LINK_FRAMES_UP.inc()
        if deltas := message.deltas:
            self._deliver(deltas)
        if message.HasField("kv_events") and not self.closed.is_set():
            events = message.kv_events
            self._membership.prefixes.apply(
                self.rank_id,
                sequence=events.sequence,
                reset=events.reset,
                block_size=events.block_size,
                removed=events.removed,
                stored=events.stored,
            )
        if message.HasField("load"):
            self._membership.report(self.rank_id, self, message.load)
        if message.HasField("drain"):
            self._membership.drain(self.rank_id, self, message.drain.reason)
        if (
            message.HasField("pong")
            and message.pong.number == self._ping_number
            and self._ping_sent_at is not None
        ):
            self.round_trip = self._heard_at - self._ping_sent_at
            self._ping_sent_at = None

    def _deliver(self, deltas: Sequence[link_pb2.Delta]) -> None:
        """Deliver each delta to its request."""
        metrics.LINK_DELTAS.inc(len(deltas))
        streams, counted = self._streams, self._counted
        for delta in deltas:
            request_id = delta.request_id
            stream = streams.get(request_id)
            if stream is None:
                # The rank sent the delta before it received the abort.
                continue
            if stream.receive(delta) and self._ended(stream, delta):
                continue
            now = stream.outstanding_tokens
            self.outstanding_tokens += now - counted[request_id]
            counted[request_id] = now

    def _ended(self, stream: LinkedStream, delta: link_pb2.Delta) -> bool:
        """Tell the rank which choices the router has ended; return whether the request is done.

        Args:
            stream: The request.
            delta: Its last delta.
        """
        for index in stream.completed:
            self._completed.append(
                link_pb2.CompletedChoice(request_id=stream.request_id, index=index)
            )
            self._wake.set()
        stream.completed.clear()
        if not stream.done:
            return False
        self._forget(stream)
        if not delta.finished:
            # It failed or ended in the router. The completed choices do not suffice for a rank that
            # still waits for others.
            self._aborts.append(stream.request_id)
            self._wake.set()
        return True

    async def send(self, write: Write) -> None:
        """Write frames until the link is closed."""
        while not self.closed.is_set():
            await self._wake.wait()
            self._wake.clear()
            while frame := self._next_frame():
                await write(frame)
                metrics.LINK_FRAMES_DOWN.inc()

    async def watch(self) -> None:
        """Ping a silent rank, and close the link after ``silence_limit`` seconds of silence.

        The transport's keepalive detects a dead peer; this task detects a peer that accepts bytes
        but does not respond (a stopped process, a stuck event loop). A rank that sends reports is
        pinged only once per limit, to measure the round trip; with hundreds of ranks, Pongs would
        otherwise be half of all frames.

        A late pass does not close the link: this process has stalled, and the frames that the rank
        sent during that time are read before the next pass.
        """
        pinged_at = -math.inf
        while not self.closed.is_set():
            silent = self._clock.monotonic() - self._heard_at
            # Wake when the limit is reached, and often enough to send a Ping before that.
            left = max(self._silence_limit - silent, 0.001)
            pause = min(self._silence_limit / 4, left)
            due = self._clock.monotonic() + pause
            await asyncio.sleep(pause)
            now = self._clock.monotonic()
            silent = now - self._heard_at
            if silent >= self._silence_limit and now - due < self._silence_limit / 4:
                self.close(f"nothing received for {silent:.1f} s")
                return
            quiet = silent >= self._silence_limit / 4
            if self._ping_sent_at is None and (quiet or now - pinged_at >= self._silence_limit):
                pinged_at = now
                self._ping_due = True
                self._wake.set()

    def _next_frame(self) -> link_pb2.RouterMessage | None:
        if not (self._submits or self._aborts or self._completed or self._ping_due):
            return None
        frame = link_pb2.RouterMessage()
        size = 0
        while self._submits:
            request_id, work = next(iter(self._submits.items()))
            size += work.ByteSize()
            if size > self._frame_bytes:
                break
            frame.submits.append(work)
            del self._submits[request_id]
        frame.abort_request_ids.extend(self._aborts)
        self._aborts.clear()
        frame.completed.extend(self._completed)
        self._completed.clear()
        if self._ping_due:
            self._ping_due = False
            self._ping_number += 1
            self._ping_sent_at = self._clock.monotonic()
            frame.ping.number = self._ping_number
        return frame

    def _count(self, stream: LinkedStream) -> None:
        now = stream.outstanding_tokens
        self.outstanding_tokens += now - self._counted.get(stream.request_id, 0)
        self._counted[stream.request_id] = now

    def _forget(self, stream: LinkedStream) -> None:
        del self._streams[stream.request_id]
        self.inflight_requests = len(self._streams)
        self.outstanding_tokens -= self._counted.pop(stream.request_id)
