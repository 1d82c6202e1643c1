"""What waits to go up to one router, batched into as few frames as possible."""

import asyncio

from serving.engine.kv_mirror import KvFeed, KvMirror
from serving.link.v1 import link_pb2


class Outbox:
    """Collects deltas, load, pongs, a drain and cache changes until the sender gets to run.

    All request tasks that an engine step wakes run before the sender does, so a step's deltas
    go up together without any timer. ``put`` never waits: past ``limit`` deltas the outbox
    declares itself overflowed, and the session is reset.
    """

    def __init__(self, limit: int, max_frame_bytes: int) -> None:
        self.overflowed = asyncio.Event()
        self._limit = limit
        # Half: room for the rest of the frame and for protobuf's own framing.
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
        """Add a delta."""
        if len(self._deltas) >= self._limit:
            self.overflowed.set()
            return
        self._deltas.append(delta)
        self._stir()

    def load(self, load: link_pb2.LoadSnapshot) -> None:
        """Send this load next, instead of one that waits."""
        self._load = load
        self._stir()

    def pong(self, number: int) -> None:
        """Answer a Ping."""
        self._pong = number
        self._stir()

    def drain(self, reason: str) -> None:
        """Say that nothing new is taken."""
        self._drain = reason
        self._stir()

    def follow(self, mirror: KvMirror | None) -> None:
        """Tell what the engine's prefix cache holds, and what changes in it."""
        if mirror is not None:
            self._mirror, self._feed = mirror, mirror.feed(self._stir)

    def close(self) -> None:
        """Follow nothing any more. Safe to call twice."""
        if self._mirror is not None and self._feed is not None:
            self._mirror.drop(self._feed)
        self._mirror = self._feed = None

    async def empty(self) -> None:
        """Wait until everything has been handed to the transport."""
        await self._empty.wait()

    async def frames(self) -> list[link_pb2.RankMessage]:
        """Wait until there is something to send, and take all of it."""
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
                delta, length = _too_large(delta, length), 0  # noqa: PLW2901  sent instead
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
        """Note that the frames taken last were handed to the transport."""
        if not self._wake.is_set():
            self._empty.set()

    def _stir(self) -> None:
        self._empty.clear()
        self._wake.set()


def _too_large(delta: link_pb2.Delta, length: int) -> link_pb2.Delta:
    return link_pb2.Delta(
        request_id=delta.request_id,
        finished=True,
        error=link_pb2.RequestError(
            code=link_pb2.RequestError.INVALID_REQUEST,
            message=f"one step of this request's output takes {length} bytes, more than a "
            "frame may hold: ask for fewer log-probabilities, or raise link.max_frame_bytes",
        ),
    )
