"""Prefix cache of the fake engine: block hashes with least-recently-used eviction."""

from collections import OrderedDict
from collections.abc import Sequence

from serving.engine.kv_mirror import KvMirror
from serving.link.block_hashes import ROOT, block_hashes


class FakeCache:
    """Records which prefixes have been computed; stores no tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """Create an empty cache.

        Args:
            blocks: Maximum number of blocks.
            block_size: Tokens per block.
        """
        self.mirror = KvMirror(block_size, 2 * blocks)
        self._most = blocks
        self._size = block_size
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, prompt: Sequence[int], root: int = ROOT) -> int:
        """Return the number of cached tokens of a prompt; the last token is always computed.

        Args:
            prompt: The prompt.
            root: Parent hash of its first block.
        """
        blocks = 0
        for name in block_hashes(prompt[:-1], self._size, root):
            if name not in self._blocks:
                break
            blocks += 1
        return blocks * self._size

    def keep(self, token_ids: Sequence[int], root: int = ROOT) -> None:
        """Cache the full blocks of ``token_ids``; evict other blocks if necessary.

        Args:
            token_ids: A prompt, or a prompt and its output.
            root: Parent hash of the first block.
        """
        names = list(block_hashes(token_ids, self._size, root))
        # Reverse order as in vLLM: the end of a prompt is evicted before its beginning.
        for name in reversed(names):
            self._blocks[name] = None
            self._blocks.move_to_end(name)
        parent = None
        for index, name in enumerate(names):
            if name not in self.mirror:
                block = token_ids[index * self._size : (index + 1) * self._size]
                self.mirror.stored([name], parent, block, root)
            parent = name
        evicted = []
        while len(self._blocks) > self._most:
            evicted.append(self._blocks.popitem(last=False)[0])
        self.mirror.removed(evicted)

    def clear(self) -> None:
        """Remove everything."""
        self._blocks.clear()
        self.mirror.cleared()
