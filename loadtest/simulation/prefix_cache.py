"""The prefix cache of one rank: blocks that running sequences hold, and what is left of others."""

from collections import OrderedDict
from collections.abc import Iterable

from serving.link.block_hashes import PromptNames


class PrefixCache:
    """Blocks by name. What nobody holds goes least recently used first, ends before beginnings."""

    __slots__ = ("_block", "_free", "_held", "removed", "sequence", "stored")

    def __init__(self, block: int) -> None:
        """Hold nothing; ``block`` is tokens."""
        self._block = block
        self._held: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()
        self.stored: list[int] = []
        """Names since the last report."""
        self.removed: list[int] = []
        self.sequence = 0
        """Reports so far."""

    def __len__(self) -> int:
        return len(self._held) + len(self._free)

    def matched(self, names: PromptNames) -> int:
        """Return how many tokens of a prompt's beginning are here."""
        depth = 0
        for name in names.reusable(self._block):
            if name not in self._held and name not in self._free:
                break
            depth += 1
        return depth * self._block

    def store(self, names: PromptNames) -> None:
        """Note that a prompt was computed: all its blocks are here, and held."""
        for name in names.all(self._block):
            if name in self._held:
                self._held[name] += 1
                continue
            if name in self._free:
                del self._free[name]
            else:
                self.stored.append(name)
            self._held[name] = 1

    def release(self, names: PromptNames) -> None:
        """Let go of what ``store`` kept."""
        for name in reversed(names.all(self._block)):
            holders = self._held[name]
            if holders > 1:
                self._held[name] = holders - 1
            else:
                del self._held[name]
                self._free[name] = None

    def trim(self, blocks: int) -> None:
        """Forget what nobody holds until at most so many such blocks are left."""
        while len(self._free) > blocks:
            name, _ = self._free.popitem(last=False)
            self.removed.append(name)

    def report(self) -> tuple[Iterable[int], Iterable[int]]:
        """Return what was removed and stored since the last report."""
        removed, stored = self.removed, self.stored
        self.removed, self.stored = [], []
        self.sequence += 1
        return removed, stored
