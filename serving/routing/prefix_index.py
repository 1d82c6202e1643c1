"""Which rank has the beginning of which prompt in its cache.

Ranks tell it over their links (``KvEvents``); every router hears the same, so it does not matter
which one a conversation comes to. For a rank that tells nothing the index holds what this router
sent there, least recently used first to go.
"""

from collections.abc import Collection, Iterable

from serving.link.block_hashes import PromptNames
from serving.routing.decision import RankKey
from serving.telemetry import metrics

DEFAULT_BLOCK = 64
"""Tokens of a block where a rank does not say."""


class _Rank:
    __slots__ = ("bit", "block_size", "blocks", "next_sequence", "reports")

    def __init__(self, bit: int, block_size: int) -> None:
        self.bit = bit
        self.block_size = block_size
        self.blocks: dict[int, None] = {}
        """Names; in order of use where they are guesses."""
        self.reports = False
        self.next_sequence: int | None = None
        """None: what comes is ignored until the next reset."""


class PrefixIndex:
    """Block name to the ranks that hold it, and back.

    Ranks are bits of one integer, so that a prompt is looked up for all ranks at once: one step
    a block, however many ranks there are. All calls come from one event loop.
    """

    def __init__(self, blocks_per_rank: int = 262_144, guesses_per_rank: int = 4096) -> None:
        """Know nothing.

        Args:
            blocks_per_rank: most blocks that are kept of what one rank tells.
            guesses_per_rank: most blocks that are kept for one that tells nothing.

        """
        self._limit = blocks_per_rank
        self._guess_limit = guesses_per_rank
        self._ranks: dict[RankKey, _Rank] = {}
        self._by_bit: dict[int, RankKey] = {}
        self._holders: dict[int, int] = {}
        self._guessing: set[RankKey] = set()

    # -- what ranks tell ----------------------------------------------------------------

    def apply(
        self,
        rank: RankKey,
        *,
        sequence: int,
        reset: bool,
        block_size: int,
        removed: Iterable[int],
        stored: Iterable[int],
    ) -> None:
        """Take in what a rank tells of its cache; arguments as in the link's ``KvEvents``."""
        entry = self._entry(rank, block_size)
        entry.reports = True
        self._guessing.discard(rank)
        if reset or sequence != entry.next_sequence:
            if not reset and entry.next_sequence is not None:
                metrics.PREFIX_GAPS.inc()
            self._drop(entry, list(entry.blocks))
            entry.block_size = block_size
            entry.next_sequence = sequence if reset and block_size else None
        if entry.next_sequence is None:
            return
        entry.next_sequence = sequence + 1
        self._drop(entry, removed)
        self._add(entry, stored, self._limit)

    def forget(self, rank: RankKey) -> None:
        """Drop all that is known of a rank: it left."""
        entry = self._ranks.pop(rank, None)
        if entry is not None:
            self._drop(entry, list(entry.blocks))
            del self._by_bit[entry.bit]
            self._guessing.discard(rank)

    # -- what this router did -----------------------------------------------------------

    def guess(self, rank: RankKey, prompt: PromptNames, block_size: int) -> None:
        """Note that a prompt was sent to a rank. Ignored for ranks that tell themselves."""
        entry = self._ranks.get(rank)
        if not prompt.token_ids or (entry is not None and entry.reports):
            return
        entry = entry or self._entry(rank, block_size or DEFAULT_BLOCK)
        self._guessing.add(rank)
        names = prompt.all(entry.block_size)[: self._guess_limit]
        # Of one prompt the end is forgotten before the beginning.
        for name in reversed(names):
            entry.blocks.pop(name, None)
            entry.blocks[name] = None
            self._holders[name] = self._holders.get(name, 0) | entry.bit
        excess = len(entry.blocks) - self._guess_limit
        if excess > 0:
            self._drop(entry, [name for name, _ in zip(entry.blocks, range(excess), strict=False)])

    # -- what is ------------------------------------------------------------------------

    @property
    def guessing(self) -> Collection[RankKey]:
        """Ranks whose blocks are guesses."""
        return self._guessing

    def blocks(self, rank: RankKey) -> Collection[int]:
        """Return the names of the blocks that a rank holds."""
        entry = self._ranks.get(rank)
        return frozenset(entry.blocks) if entry is not None else frozenset()

    def matches(self, prompt: PromptNames) -> dict[RankKey, int]:
        """Return, for each rank that holds any, how many of the prompt's first tokens it holds."""
        found: dict[RankKey, int] = {}
        for size in {entry.block_size for entry in self._ranks.values() if entry.blocks}:
            depth, still = 0, 0
            for name in prompt.reusable(size):
                here = self._holders.get(name, 0)
                if depth > 0:
                    here &= still
                    self._note(found, still & ~here, depth * size)
                still = here
                if not still:
                    break
                depth += 1
            self._note(found, still, depth * size)
        return found

    def _note(self, found: dict[RankKey, int], bits: int, tokens: int) -> None:
        while bits:
            bit = bits & -bits
            found[self._by_bit[bit]] = tokens
            bits ^= bit

    # -- storage ------------------------------------------------------------------------

    def _entry(self, rank: RankKey, block_size: int) -> _Rank:
        entry = self._ranks.get(rank)
        if entry is None:
            slot = 0
            while 1 << slot in self._by_bit:
                slot += 1
            entry = self._ranks[rank] = _Rank(1 << slot, block_size)
            self._by_bit[entry.bit] = rank
        return entry

    def _add(self, entry: _Rank, names: Iterable[int], limit: int) -> None:
        bit, blocks, holders = entry.bit, entry.blocks, self._holders
        for name in names:
            if len(blocks) >= limit:
                break
            blocks[name] = None
            holders[name] = holders.get(name, 0) | bit

    def _drop(self, entry: _Rank, names: Iterable[int]) -> None:
        bit, blocks, holders = entry.bit, entry.blocks, self._holders
        for name in names:
            if name not in blocks:
                continue
            del blocks[name]
            left = holders[name] & ~bit
            if left:
                holders[name] = left
            else:
                del holders[name]
