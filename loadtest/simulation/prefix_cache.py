"""The prefix cache of one rank: blocks in use by running sequences, and unused reusable blocks."""

from collections import OrderedDict
from collections.abc import Iterable

from serving.link.block_hashes import PromptBlockHashes


class PrefixCache:
    """Blocks by hash. Unused blocks are evicted in LRU order, from the end of a prompt."""

    __slots__ = ("_block", "_free", "_held", "removed", "sequence", "stored")

    def __init__(self, block: int) -> None:
        """Start empty; ``block`` is the block size in tokens."""
        self._block = block
        self._held: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()
        self.stored: list[int] = []
        """Hashes of blocks stored since the last report."""
        self.removed: list[int] = []
        self.sequence = 0
        """Number of reports so far."""

    def __len__(self) -> int:
        return len(self._held) + len(self._free)

    def matched(self, names: PromptBlockHashes) -> int:
        """Return how many leading tokens of a prompt are cached."""
        depth = 0
        for name in names.reusable(self._block):
            if name not in self._held and name not in self._free:
                break
            depth += 1
        return depth * self._block

    def store(self, names: PromptBlockHashes) -> None:
        """Store the blocks of a computed prompt and mark them as in use."""
        for name in names.all(self._block):
            if name in self._held:
                self._held[name] += 1
                continue
            if name in self._free:
                del self._free[name]
            else:
                self.stored.append(name)
            self._held[name] = 1

    def release(self, names: PromptBlockHashes) -> None:
        """Release the blocks that ``store`` marked as in use."""
        for name in reversed(names.all(self._block)):
            holders = self._held[name]
            if holders > 1:
                self._held[name] = holders - 1
            else:
                del self._held[name]
                self._free[name] = None

    def trim(self, blocks: int) -> None:
        """Evict unused blocks until at most ``blocks`` of them are left."""
        while len(self._free) > blocks:
            name, _ = self._free.popitem(last=False)
            self.removed.append(name)

    def report(self) -> tuple[Iterable[int], Iterable[int]]:
        """Return the hashes removed and stored since the last report."""
        removed, stored = self.removed, self.stored
        self.removed, self.stored = [], []
        self.sequence += 1
        return removed, stored
