"""Queue of messages to one router, batched into as few frames as possible."""

import asyncio

from serving.engine.kv_mirror import KvFeed, KvMirror
from serving.link.v1 import link_pb2


class SendQueue:
    """Collects deltas, load, pong, drain and cache changes until the sender task runs.

    All request tasks woken by an engine step run before the sender task, so the deltas of a step
    share a frame without a timer.
    """

    def __init__(self, limit: int, max_frame_bytes: int) -> None:
        """Create an empty queue.

        Args:
            limit: Maximum number of queued deltas.
            max_frame_bytes: Maximum size of a frame, bytes.
        """
        self.overflowed = asyncio.Event()
        """Set when a delta has been dropped because of the limit; the stream must be reset."""
        self._limit = limit
        # The other half is reserved for the rest of the frame and protobuf's encoding.
        self._frame_bytes = max_frame_bytes // 2
        self._deltas: list[link_pb2.Delta] = []
        self._load: link_pb2.LoadSnapshot | None = None
        self._pong: int | None = None
        self._drain: str | None = None
        self._mirror: KvMirror | None = None
        self._feed: KvFeed | None = None
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, delta: link_pb2.Delta) -> None:
        """Add a delta without blocking; at the limit, drop it and set ``overflowed``."""
        if len(self._deltas) >= self._limit:
            self.overflowed.set()
            return
        self._deltas.append(delta)
        self._wake_sender()

    def load(self, load: link_pb2.LoadSnapshot) -> None:
        """Send the load with the next frame; replaces an unsent load."""
        self._load = load
        self._wake_sender()

    def pong(self, number: int) -> None:
        """Answer a Ping with this number."""
        self._pong = number
        self._wake_sender()

    def drain(self, reason: str) -> None:
        """Announce to the router that new requests are rejected."""
        self._drain = reason
        self._wake_sender()

    def follow(self, mirror: KvMirror | None) -> None:
        """Send the content of the prefix cache, then its changes; ``None`` sends nothing."""
        if mirror is not None:
            self._mirror, self._feed = mirror, mirror.feed(self._wake_sender)

    def close(self) -> None:
        """Stop following the prefix cache. Safe to call twice."""
        if self._mirror is not None and self._feed is not None:
            self._mirror.drop(self._feed)
        self._mirror = self._feed = None

    async def empty(self) -> None:
        """Wait until all messages have been passed to the transport."""
        await self._empty.wait()

    async def ready(self) -> None:
        """Wait for messages."""
        await self._wake.wait()

    async def frames(self) -> list[link_pb2.RankMessage]:
        """Wait for messages; return and remove all of them as frames, in order."""
        await self._wake.wait()
        self._wake.clear()
        frame = link_pb2.RankMessage()
        if self._load is not None:
            frame.load.CopyFrom(self._load)
        if self._pong is not None:
            frame.pong.number = self._pong
        if self._drain is not None:
            frame.drain.reason = self._drain
        self._load = self._pong = self._drain = None
        deltas, self._deltas = self._deltas, []
        frames = [frame]
        size = 0
        for delta in deltas:
            length = delta.ByteSize()
            if length > self._frame_bytes:
                delta, length = _too_large(delta, length), 0  # noqa: PLW2901  replaced by an error
            size += length
            if size > self._frame_bytes:
                frame = link_pb2.RankMessage()
                frames.append(frame)
                size = length
            frame.deltas.append(delta)
        for index, events in enumerate(self._feed.take() if self._feed is not None else ()):
            if index > 0:
                frames.append(link_pb2.RankMessage())
            frames[-1].kv_events.CopyFrom(events)
        return frames

    def sent(self) -> None:
        """Record that the last returned frames have been passed to the transport."""
        if not self._wake.is_set():
            self._empty.set()

    def _wake_sender(self) -> None:
        self._empty.clear()
        self._wake.set()


def _too_large(delta: link_pb2.Delta, length: int) -> link_pb2.Delta:
    return link_pb2.Delta(
        request_id=delta.request_id,
        finished=True,
        error=link_pb2.RequestError(
            code=link_pb2.RequestError.INVALID_REQUEST,
            message=f"one step of this request's output is {length} bytes, more than a "
            "frame can hold: request fewer log probabilities, or raise link.max_frame_bytes",
        ),
    )
