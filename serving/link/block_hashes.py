"""Content hashes of KV-cache blocks, identical on every rank and router.

A block's hash covers its tokens and the hash of the previous block, in 64 bits, so it identifies
the whole beginning of a prompt. A collision costs one cache miss but never causes a wrong answer,
because hashes only guide routing.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_HASH_BYTES = 8
_TOKEN_BYTES = 4
_TOKEN = "I" if array("I").itemsize == _TOKEN_BYTES else "L"

ROOT = 0
"""Parent hash of a prompt's first block, without an adapter."""


def adapter_root(key: str) -> int:
    """Return the parent hash of a prompt's first block for an adapter.

    An adapter changes the keys and values of all tokens, so its blocks are different ones.

    Args:
        key: The adapter's key (``protocol.adapter_key``).
    """
    return int.from_bytes(blake2b(key.encode(), digest_size=_HASH_BYTES).digest(), "little")


def pack(token_ids: Sequence[int]) -> bytes:
    """Pack token ids for ``block_hash``: 4 bytes each, little-endian."""
    tokens = array(_TOKEN, token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()


def block_hash(parent: int, packed: bytes) -> int:
    """Hash a block.

    Args:
        parent: Hash of the previous block, or ``ROOT``.
        packed: The block's tokens, as returned by ``pack``.
    """
    key = parent.to_bytes(_HASH_BYTES, "little")
    return int.from_bytes(blake2b(packed, digest_size=_HASH_BYTES, key=key).digest(), "little")


def block_hashes(token_ids: Sequence[int], block_size: int, parent: int = ROOT) -> Iterator[int]:
    """Yield the hashes of the full blocks of ``token_ids`` in order, each computed on demand."""
    packed = pack(token_ids)
    width = block_size * _TOKEN_BYTES
    for start in range(0, len(packed) - width + 1, width):
        parent = block_hash(parent, packed[start : start + width])
        yield parent


class PromptBlockHashes:
    """The block hashes of one prompt, computed lazily and at most once.

    For a prompt that matches no cache, only the first block is hashed. Repeated attempts to place a
    waiting request do not hash its prompt again.
    """

    __slots__ = ("_hashes", "_root", "token_ids")

    def __init__(self, token_ids: Sequence[int] = (), root: int = ROOT) -> None:
        """Hash a prompt.

        Args:
            token_ids: The prompt.
            root: Parent hash of the first block: ``ROOT``, or an ``adapter_root``.
        """
        self.token_ids = token_ids
        self._root = root
        self._hashes: dict[int, tuple[list[int], Iterator[int]]] = {}

    def reusable(self, block_size: int) -> Iterator[int]:
        """Yield the hashes of the blocks that a cache can serve.

        The last token is always computed, so a block that contains it is excluded.
        """
        most = (len(self.token_ids) - 1) // block_size
        known, rest = self._of(block_size)
        for index in range(most):
            if index == len(known):
                known.append(next(rest))
            yield known[index]

    def all(self, block_size: int) -> list[int]:
        """Return the hashes of all full blocks."""
        known, rest = self._of(block_size)
        known.extend(rest)
        return known

    def _of(self, block_size: int) -> tuple[list[int], Iterator[int]]:
        if block_size not in self._hashes:
            self._hashes[block_size] = ([], block_hashes(self.token_ids, block_size, self._root))
        return self._hashes[block_size]
