"""The fake engine's prefix cache: blocks by name, least recently used ones go first."""

from collections import OrderedDict
from collections.abc import Sequence

from serving.engine.kv_mirror import KvMirror
from serving.link.block_hashes import block_names


class FakeCache:
    """Remembers which prompts' beginnings were computed; holds no tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """Be empty.

        Args:
            blocks: most blocks that are kept.
            block_size: tokens of a block.

        """
        self.mirror = KvMirror(block_size, 2 * blocks)
        self._most = blocks
        self._size = block_size
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of the prompt need not be computed; the last one always is."""
        blocks = 0
        for name in block_names(prompt[:-1], self._size):
            if name not in self._blocks:
                break
            blocks += 1
        return blocks * self._size

    def keep(self, token_ids: Sequence[int]) -> None:
        """Keep the full blocks of ``token_ids``, and drop old ones for them."""
        names = list(block_names(token_ids, self._size))
        # Backwards, as vLLM frees them: of one prompt the end goes before the beginning.
        for name in reversed(names):
            self._blocks[name] = None
            self._blocks.move_to_end(name)
        parent = None
        for index, name in enumerate(names):
            if name not in self.mirror:
                block = token_ids[index * self._size : (index + 1) * self._size]
                self.mirror.stored([name], parent, block)
            parent = name
        gone = []
        while len(self._blocks) > self._most:
            gone.append(self._blocks.popitem(last=False)[0])
        self.mirror.removed(gone)

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.mirror.cleared()
