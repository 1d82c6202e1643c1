"""What an engine's prefix cache holds, by content, and what of it each router has still to hear.

The engine tells the mirror; every router's link takes what changed from a feed of its own. A
feed tells the state, not the story: a block that came and went in between costs nothing.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from serving.link.block_hashes import ROOT, block_names
from serving.link.v1 import link_pb2

_CHUNK = 32768
"""Most names in one message: 256 KiB, well under the smallest frame."""
_FEED_LIMIT = 65536
"""Changes that a feed keeps one by one; past it the whole state is told anew."""


@dataclass(slots=True)
class _Block:
    name: int
    copies: int
    """Two requests that compute the same prompt at once fill two blocks of the same content."""


class KvMirror:
    """The blocks that can be reused. All calls come from one event loop."""

    def __init__(self, block_size: int, limit: int) -> None:
        """Hold nothing yet.

        Args:
            block_size: tokens of a block.
            limit: most blocks that the engine can hold; when the mirror holds more, it has
                missed that some went, and begins anew.

        """
        self.block_size = block_size
        self._limit = limit
        self._blocks: dict[Hashable, _Block] = {}
        self._feeds: list[KvFeed] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._blocks

    @property
    def names(self) -> set[int]:
        """Names of all blocks."""
        return {block.name for block in self._blocks.values()}

    def stored(
        self, keys: Sequence[Hashable], parent: Hashable | None, token_ids: Sequence[int]
    ) -> None:
        """Note that blocks can be reused from here on.

        Args:
            keys: the engine's own keys of consecutive blocks.
            parent: key of the block before them; none at the beginning of a prompt.
            token_ids: tokens of all of them.

        """
        before = ROOT if parent is None else self._name(parent)
        if before is None:
            return  # what it goes on from is not known, so neither is what it is
        came = []
        for key, name in zip(keys, block_names(token_ids, self.block_size, before), strict=False):
            block = self._blocks.get(key)
            if block is None:
                self._blocks[key] = _Block(name, 1)
                came.append(name)
            else:
                block.copies += 1
        if len(self._blocks) > self._limit:
            self.cleared()
            return
        self._tell(came, present=True)

    def removed(self, keys: Iterable[Hashable]) -> None:
        """Note that a copy of each of these blocks is gone. Unknown keys are ignored."""
        gone = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                continue
            block.copies -= 1
            if block.copies == 0:
                del self._blocks[key]
                gone.append(block.name)
        self._tell(gone, present=False)

    def cleared(self) -> None:
        """Note that nothing is held any more, or that nothing is known of what is."""
        self._blocks.clear()
        for feed in self._feeds:
            feed.reset()

    def feed(self, changed: Callable[[], None]) -> "KvFeed":
        """Return a new feed, which begins with all that is held.

        Args:
            changed: called when there is something to take.

        """
        feed = KvFeed(self, changed)
        self._feeds.append(feed)
        feed.reset()
        return feed

    def drop(self, feed: "KvFeed") -> None:
        """Tell ``feed`` nothing more."""
        self._feeds.remove(feed)

    def _name(self, key: Hashable) -> int | None:
        block = self._blocks.get(key)
        return None if block is None else block.name

    def _tell(self, names: list[int], *, present: bool) -> None:
        if names:
            for feed in self._feeds:
                feed.note(names, present=present)


class KvFeed:
    """What one router has still to hear."""

    def __init__(self, mirror: KvMirror, changed: Callable[[], None]) -> None:
        self._mirror = mirror
        self._changed = changed
        self._pending: dict[int, bool] = {}
        self._reset = False
        self._sequence = 0

    def note(self, names: list[int], *, present: bool) -> None:
        """Remember a change until it is taken."""
        if not self._reset:
            self._pending.update(dict.fromkeys(names, present))
            if len(self._pending) > _FEED_LIMIT:
                self.reset()
                return
        self._changed()

    def reset(self) -> None:
        """Tell everything anew."""
        self._pending.clear()
        self._reset = True
        self._changed()

    def take(self) -> list[link_pb2.KvEvents]:
        """Return what is to be sent now, in order, none of it large; empty if nothing is."""
        if self._reset:
            removed, stored = [], list(self._mirror.names)
        elif self._pending:
            removed = [name for name, present in self._pending.items() if not present]
            stored = [name for name, present in self._pending.items() if present]
        else:
            return []
        messages = []
        count = max(len(removed), len(stored), 1)
        for start in range(0, count, _CHUNK):
            messages.append(
                link_pb2.KvEvents(
                    block_size=self._mirror.block_size,
                    sequence=self._sequence,
                    reset=self._reset and start == 0,
                    removed=removed[start : start + _CHUNK],
                    stored=stored[start : start + _CHUNK],
                )
            )
            self._sequence += 1
        self._reset = False
        self._pending.clear()
        return messages
