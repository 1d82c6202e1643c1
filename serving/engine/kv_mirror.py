"""A mirror of an engine's prefix cache by content, with one feed of changes per router.

The engine updates the mirror; each router's stream reads the changes from a feed. A feed carries
the difference between two states rather than every event: a block that was stored and removed
between two reads is not sent.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from serving.link.block_hashes import ROOT, block_hashes
from serving.link.v1 import link_pb2

_CHUNK = 32768
"""Maximum number of hashes in one message: 256 KiB, well below the smallest frame size."""
_FEED_LIMIT = 65536
"""Maximum number of changes in a feed; beyond this the feed sends the whole state again."""


@dataclass(slots=True)
class _Block:
    name: int
    copies: int
    """Number of blocks with this content. Concurrent requests with the same prompt each fill a
    block."""


class KvMirror:
    """The blocks that requests can reuse. Call from a single event loop."""

    def __init__(self, block_size: int, limit: int, feed_limit: int = _FEED_LIMIT) -> None:
        """Create an empty mirror.

        Args:
            block_size: Tokens per block.
            limit: Maximum number of blocks that the engine can hold. A mirror with more blocks
                has missed removals and is cleared.
            feed_limit: Maximum number of changes in a feed.
        """
        self.block_size = block_size
        self.feed_limit = feed_limit
        self._limit = limit
        self._blocks: dict[Hashable, _Block] = {}
        self._feeds: list[KvFeed] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._blocks

    @property
    def names(self) -> set[int]:
        """Content hashes of all blocks."""
        return {block.name for block in self._blocks.values()}

    def stored(
        self,
        keys: Sequence[Hashable],
        parent: Hashable | None,
        token_ids: Sequence[int],
        root: int = ROOT,
    ) -> None:
        """Record that consecutive blocks can now be reused.

        Args:
            keys: The engine's keys of the blocks.
            parent: Key of the preceding block; ``None`` at the beginning of a prompt.
            token_ids: Tokens of all blocks, ``len(keys) * block_size``.
            root: Parent hash of the first block of a prompt.

        """
        before = root if parent is None else self._name(parent)
        if before is None:
            return  # without the preceding block the content is unknown
        added = []
        for key, name in zip(keys, block_hashes(token_ids, self.block_size, before), strict=False):
            block = self._blocks.get(key)
            if block is None:
                self._blocks[key] = _Block(name, 1)
                added.append(name)
            else:
                block.copies += 1
        if len(self._blocks) > self._limit:
            self.cleared()
            return
        self._notify(added, present=True)

    def removed(self, keys: Iterable[Hashable]) -> None:
        """Record the removal of one copy of each block. Unknown keys are ignored."""
        removed_names = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                continue
            block.copies -= 1
            if block.copies == 0:
                del self._blocks[key]
                removed_names.append(block.name)
        self._notify(removed_names, present=False)

    def cleared(self) -> None:
        """Record that the cache is empty, or that its content is unknown."""
        self._blocks.clear()
        for feed in self._feeds:
            feed.reset()

    def feed(self, changed: Callable[[], None]) -> "KvFeed":
        """Return a new feed that begins with the whole content of the cache.

        Args:
            changed: Called when the feed has something to send.

        """
        feed = KvFeed(self, changed)
        self._feeds.append(feed)
        feed.reset()
        return feed

    def drop(self, feed: "KvFeed") -> None:
        """Stop updating ``feed``."""
        self._feeds.remove(feed)

    def _name(self, key: Hashable) -> int | None:
        block = self._blocks.get(key)
        return None if block is None else block.name

    def _notify(self, names: list[int], *, present: bool) -> None:
        if names:
            for feed in self._feeds:
                feed.note(names, present=present)


class KvFeed:
    """Changes that have not been sent to one router yet."""

    def __init__(self, mirror: KvMirror, changed: Callable[[], None]) -> None:
        self._mirror = mirror
        self._changed = changed
        self._pending: dict[int, bool] = {}
        self._reset = False
        self._sequence = 0

    def note(self, names: list[int], *, present: bool) -> None:
        """Add a change: the blocks are now present or absent."""
        if not self._reset:
            self._pending.update(dict.fromkeys(names, present))
            if len(self._pending) > self._mirror.feed_limit:
                self.reset()
                return
        self._changed()

    def reset(self) -> None:
        """Send the whole state next."""
        self._pending.clear()
        self._reset = True
        self._changed()

    def take(self) -> list[link_pb2.KvEvents]:
        """Return and remove the pending changes as ordered messages of bounded size."""
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
