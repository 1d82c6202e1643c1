"""Index of cached prompt prefixes: which rank caches which KV blocks.

Ranks report their caches over their links (``KvEvents``). Every router receives the same reports,
so a conversation can continue at any router. For a rank that does not report, the index holds the
prompts that this router sent to it, and drops the least recently used blocks first.
"""

from collections.abc import Collection, Iterable

from serving.link.block_hashes import PromptBlockHashes
from serving.routing.snapshot import RankId
from serving.telemetry import metrics

DEFAULT_BLOCK = 64
"""Assumed number of tokens per block of a rank that does not report its block size."""


class _Rank:
    __slots__ = ("bit", "block_size", "blocks", "next_sequence", "reports")

    def __init__(self, bit: int, block_size: int) -> None:
        self.bit = bit
        self.block_size = block_size
        self.blocks: dict[int, None] = {}
        """Block hashes; if they are guesses, ordered by use, least recent first."""
        self.reports = False
        self.next_sequence: int | None = None
        """Expected number of the next event. If None, events are ignored until the next reset."""


class PrefixIndex:
    """Maps block hashes to the ranks that hold them, and ranks to their blocks.

    Each rank is one bit of an integer, so one lookup per block covers all ranks. Not
    thread-safe: all calls come from one event loop.
    """

    def __init__(self, blocks_per_rank: int = 262_144, guesses_per_rank: int = 4096) -> None:
        """Create an empty index.

        Args:
            blocks_per_rank: Maximum number of blocks kept for a rank that reports its cache.
            guesses_per_rank: Maximum number of blocks kept for a rank that does not.
        """
        self._limit = blocks_per_rank
        self._guess_limit = guesses_per_rank
        self._ranks: dict[RankId, _Rank] = {}
        self._by_bit: dict[int, RankId] = {}
        self._holders: dict[int, int] = {}
        self._guessing: set[RankId] = set()
        self._sizes: dict[int, int] = {}
        """Number of ranks that hold blocks, by block size."""

    # -- reported by ranks ----------------------------------------------------------------

    def apply(
        self,
        rank_id: RankId,
        *,
        sequence: int,
        reset: bool,
        block_size: int,
        removed: Iterable[int],
        stored: Iterable[int],
    ) -> None:
        """Apply a rank's cache events; the arguments are the fields of the link's ``KvEvents``.

        After a gap in the sequence, the rank's blocks are dropped, and its events are ignored until
        the next reset.
        """
        entry = self._entry(rank_id, block_size)
        entry.reports = True
        self._guessing.discard(rank_id)
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

    def forget(self, rank_id: RankId) -> None:
        """Drop all data about a rank that left."""
        entry = self._ranks.pop(rank_id, None)
        if entry is not None:
            self._drop(entry, list(entry.blocks))
            del self._by_bit[entry.bit]
            self._guessing.discard(rank_id)

    # -- sent by this router ----------------------------------------------------------------

    def guess(self, rank_id: RankId, prompt: PromptBlockHashes, block_size: int) -> None:
        """Record that a prompt was sent to a rank; ignored for a rank that reports its cache.

        Args:
            rank_id: The rank that the prompt was sent to.
            prompt: Block hashes of the prompt.
            block_size: Tokens per block of that rank; 0 means ``DEFAULT_BLOCK``. Ignored if the
                rank is in the index.
        """
        entry = self._ranks.get(rank_id)
        if not prompt.token_ids or (entry is not None and entry.reports):
            return
        entry = entry or self._entry(rank_id, block_size or DEFAULT_BLOCK)
        self._guessing.add(rank_id)
        hashes = prompt.all(entry.block_size)[: self._guess_limit]
        had_blocks = bool(entry.blocks)
        # Reversed, so that the end of a prompt is dropped before its beginning.
        for block in reversed(hashes):
            entry.blocks.pop(block, None)
            entry.blocks[block] = None
            self._holders[block] = self._holders.get(block, 0) | entry.bit
        self._count_size(entry, had_blocks=had_blocks)
        excess = len(entry.blocks) - self._guess_limit
        if excess > 0:
            self._drop(
                entry, [block for block, _ in zip(entry.blocks, range(excess), strict=False)]
            )

    # -- lookups ----------------------------------------------------------------------------

    @property
    def guessing(self) -> Collection[RankId]:
        """Ranks whose blocks are guesses, because they do not report."""
        return self._guessing

    @property
    def ranks(self) -> Collection[RankId]:
        """Ranks in the index."""
        return self._ranks.keys()

    def __len__(self) -> int:
        """Return the number of distinct blocks that ranks hold."""
        return len(self._holders)

    def blocks(self, rank_id: RankId) -> Collection[int]:
        """Return the hashes of the blocks that a rank holds."""
        entry = self._ranks.get(rank_id)
        return frozenset(entry.blocks) if entry is not None else frozenset()

    def matches(self, prompt: PromptBlockHashes) -> dict[RankId, int]:
        """Return how many leading prompt tokens each rank caches; ranks with 0 are omitted."""
        found: dict[RankId, int] = {}
        for size in self._sizes:
            depth, still = 0, 0
            for block in prompt.reusable(size):
                here = self._holders.get(block, 0)
                if depth > 0:
                    here &= still
                    self._note(found, still & ~here, depth * size)
                still = here
                if not still:
                    break
                depth += 1
            self._note(found, still, depth * size)
        return found

    def _note(self, found: dict[RankId, int], bits: int, tokens: int) -> None:
        while bits:
            bit = bits & -bits
            found[self._by_bit[bit]] = tokens
            bits ^= bit

    # -- storage ------------------------------------------------------------------------

    def _entry(self, rank_id: RankId, block_size: int) -> _Rank:
        entry = self._ranks.get(rank_id)
        if entry is None:
            slot = 0
            while 1 << slot in self._by_bit:
                slot += 1
            entry = self._ranks[rank_id] = _Rank(1 << slot, block_size)
            self._by_bit[entry.bit] = rank_id
        return entry

    def _add(self, entry: _Rank, hashes: Iterable[int], limit: int) -> None:
        bit, blocks, holders = entry.bit, entry.blocks, self._holders
        had_blocks = bool(blocks)
        for block in hashes:
            if len(blocks) >= limit:
                break
            blocks[block] = None
            holders[block] = holders.get(block, 0) | bit
        self._count_size(entry, had_blocks=had_blocks)

    def _drop(self, entry: _Rank, hashes: Iterable[int]) -> None:
        bit, blocks, holders = entry.bit, entry.blocks, self._holders
        had_blocks = bool(blocks)
        for block in hashes:
            if block not in blocks:
                continue
            del blocks[block]
            left = holders[block] & ~bit
            if left:
                holders[block] = left
            else:
                del holders[block]
        self._count_size(entry, had_blocks=had_blocks)

    def _count_size(self, entry: _Rank, *, had_blocks: bool) -> None:
        """Update the count of ranks for an entry that got its first or lost its last block."""
        if had_blocks is bool(entry.blocks):
            return
        count = self._sizes.get(entry.block_size, 0) + (-1 if had_blocks else 1)
        if count:
            self._sizes[entry.block_size] = count
        else:
            del self._sizes[entry.block_size]
