"""The router's end of one rank's stream: what goes down, and who gets what comes up."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from serving.clock import Clock
from serving.errors import GroupLost, InvalidRequest, Overloaded
from serving.fleet.membership import Roster
from serving.fleet.rank_handle import LinkedStream, MemberKey
from serving.link.v1 import link_pb2
from serving.telemetry import metrics

Write = Callable[[link_pb2.RouterMessage], Awaitable[None]]


class RankLink:
    """Implements ``rank_handle.RankHandle`` on a Join stream.

    Requests and aborts gather in the send queue and go down together in one frame when the
    sender gets to run. The queue is bounded: a rank that does not take its frames refuses work.
    """

    def __init__(
        self,
        key: MemberKey,
        roster: Roster,
        clock: Clock,
        *,
        send_limit: int,
        max_frame_bytes: int,
        silence_limit: float,
    ) -> None:
        self.key = key
        self._rank = (key.group_id, key.epoch, key.rank)
        self.closed = asyncio.Event()
        self.close_reason = ""
        self._roster = roster
        self._clock = clock
        self._send_limit = send_limit
        # Half: room for what else the frame holds and for protobuf's own framing.
        self._frame_bytes = max_frame_bytes // 2
        self._silence_limit = silence_limit
        self._streams: dict[str, LinkedStream] = {}
        # What each of them counts for in the sum below, as of its last frame.
        self._counted: dict[str, int] = {}
        self._outstanding = 0
        self._submits: dict[str, link_pb2.Submit] = {}
        self._aborts: list[str] = []
        self._wake = asyncio.Event()
        self._ping_number = 0
        self._ping_due = False
        self._ping_sent_at: float | None = None
        self._round_trip: float | None = None
        self._heard_at = clock.monotonic()

    # -- RankHandle ---------------------------------------------------------------------

    @property
    def inflight_requests(self) -> int:
        """Requests on the rank now."""
        return len(self._streams)

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute for them."""
        return self._outstanding

    @property
    def round_trip(self) -> float | None:
        """Seconds from Ping to Pong, last seen."""
        return self._round_trip

    def submit(self, stream: LinkedStream) -> None:
        """Queue a request for the rank.

        Raises:
            GroupLost: the link is closed.
            Overloaded: the send queue is full.
            InvalidRequest: the request is larger than a frame may be.
        """
        if self.closed.is_set():
            raise GroupLost(f"{self.key} was lost: {self.close_reason}")
        if len(self._submits) >= self._send_limit:
            raise Overloaded(
                f"{self.key} does not take its requests fast enough "
                f"({self._send_limit} wait): try again later",
            )
        if (size := stream.work.ByteSize()) > self._frame_bytes:
            raise InvalidRequest(
                f"the request takes {size} bytes on the link, {self._frame_bytes} fit: "
                "send a shorter prompt",
            )
        self._streams[stream.request_id] = stream
        self._submits[stream.request_id] = stream.work
        self._count(stream)
        self._wake.set()

    def release(self, stream: LinkedStream) -> None:
        """Forget a request, and abort it on the rank if the rank may still run it."""
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
            stream.fail(GroupLost(f"{reason}; the request can be sent again", planned=planned))

    def close(self, reason: str) -> None:
        """End the link; its Join call returns."""
        if not self.closed.is_set():
            self.close_reason = reason
            self.closed.set()
            self._roster.prefixes.forget(self._rank)
            self._wake.set()

    # -- the wire -----------------------------------------------------------------------

    def receive(self, message: link_pb2.RankMessage) -> None:
        """Take in one frame from the rank."""
        self._heard_at = self._clock.monotonic()
        metrics.LINK_FRAMES_UP.inc()
        if deltas := message.deltas:
            self._take_in(deltas)
        if message.HasField("kv_events") and not self.closed.is_set():
            events = message.kv_events
            self._roster.prefixes.apply(
                self._rank,
                sequence=events.sequence,
                reset=events.reset,
                block_size=events.block_size,
                removed=events.removed,
                stored=events.stored,
            )
        if message.HasField("load"):
            self._roster.report(self.key, self, message.load)
        if message.HasField("drain"):
            self._roster.drain(self.key, self, message.drain.reason)
        if (
            message.HasField("pong")
            and message.pong.number == self._ping_number
            and self._ping_sent_at is not None
        ):
            self._round_trip = self._heard_at - self._ping_sent_at
            self._ping_sent_at = None

    def _take_in(self, deltas: Sequence[link_pb2.Delta]) -> None:
        """Give each request what it gained."""
        metrics.LINK_DELTAS.inc(len(deltas))
        streams, counted = self._streams, self._counted
        for delta in deltas:
            request_id = delta.request_id
            stream = streams.get(request_id)
            if stream is None:
                # Crossed our abort on the way.
                continue
            stream.receive(delta)
            if stream.done:
                self._forget(stream)
                if not delta.finished:
                    # It did not fit and failed here, not on the rank.
                    self._aborts.append(request_id)
                    self._wake.set()
            else:
                now = stream.outstanding_tokens
                self._outstanding += now - counted[request_id]
                counted[request_id] = now

    async def send(self, write: Write) -> None:
        """Write frames until the link is closed."""
        while not self.closed.is_set():
            await self._wake.wait()
            self._wake.clear()
            while frame := self._next_frame():
                await write(frame)
                metrics.LINK_FRAMES_DOWN.inc()

    async def watch(self) -> None:
        """Ping the rank when it is quiet, and now and then; close the link after long silence.

        Keepalive of the transport notices a dead peer; this notices one that accepts bytes
        and does not answer (a stopped process, a stuck event loop). A rank that reports needs no
        Ping to show that it lives: with hundreds of ranks they would be half of what comes.
        """
        pinged_at = -math.inf
        while not self.closed.is_set():
            silent = self._clock.monotonic() - self._heard_at
            # Wakes when the limit is reached, and often enough to ping before that.
            left = max(self._silence_limit - silent, 0.001)
            await asyncio.sleep(min(self._silence_limit / 4, left))
            now = self._clock.monotonic()
            silent = now - self._heard_at
            if silent >= self._silence_limit:
                self.close(f"nothing heard for {silent:.1f} s")
                return
            quiet = silent >= self._silence_limit / 4
            if self._ping_sent_at is None and (quiet or now - pinged_at >= self._silence_limit):
                pinged_at = now
                self._ping_due = True
                self._wake.set()

    def _next_frame(self) -> link_pb2.RouterMessage | None:
        if not self._submits and not self._aborts and not self._ping_due:
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
        if self._ping_due:
            self._ping_due = False
            self._ping_number += 1
            self._ping_sent_at = self._clock.monotonic()
            frame.ping.number = self._ping_number
        return frame

    def _count(self, stream: LinkedStream) -> None:
        now = stream.outstanding_tokens
        self._outstanding += now - self._counted.get(stream.request_id, 0)
        self._counted[stream.request_id] = now

    def _forget(self, stream: LinkedStream) -> None:
        del self._streams[stream.request_id]
        self._outstanding -= self._counted.pop(stream.request_id)
