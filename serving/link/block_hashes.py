"""Names of KV-cache blocks by content, the same on every rank and router.

A block's name is a 64-bit hash of its tokens and of the name of the block before it, so it stands
for the whole beginning of a prompt. A collision would cost one cache miss, never a wrong answer:
names only guide routing.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_NAME_BYTES = 8
_TOKEN_BYTES = 4
_TOKEN = "I" if array("I").itemsize == _TOKEN_BYTES else "L"

ROOT = 0
"""What stands for the block before the first."""


def pack(token_ids: Sequence[int]) -> bytes:
    """Return the tokens as ``block_name`` wants them: 4 bytes each, little-endian."""
    tokens = array(_TOKEN, token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()


def block_name(parent: int, packed: bytes) -> int:
    """Name the block of tokens ``packed`` that follows the block ``parent``."""
    key = parent.to_bytes(_NAME_BYTES, "little")
    return int.from_bytes(blake2b(packed, digest_size=_NAME_BYTES, key=key).digest(), "little")


def block_names(token_ids: Sequence[int], block_size: int, parent: int = ROOT) -> Iterator[int]:
    """Yield the names of the full blocks of ``token_ids``, in order, each when it is asked for."""
    packed = pack(token_ids)
    width = block_size * _TOKEN_BYTES
    for start in range(0, len(packed) - width + 1, width):
        parent = block_name(parent, packed[start : start + width])
        yield parent


class PromptNames:
    """The names of one prompt's blocks: hashed once, and only as far as somebody looks.

    What matches nowhere in the fleet is not hashed on to its end, and a request that waits for
    its turn is not hashed anew at each try.
    """

    __slots__ = ("_names", "token_ids")

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.token_ids = token_ids
        self._names: dict[int, tuple[list[int], Iterator[int]]] = {}

    def reusable(self, block_size: int) -> Iterator[int]:
        """Yield the names that a cache can be of use for: the last token is always computed."""
        most = (len(self.token_ids) - 1) // block_size
        known, rest = self._of(block_size)
        for index in range(most):
            if index == len(known):
                known.append(next(rest))
            yield known[index]

    def all(self, block_size: int) -> list[int]:
        """Return the names of all full blocks."""
        known, rest = self._of(block_size)
        known.extend(rest)
        return known

    def _of(self, block_size: int) -> tuple[list[int], Iterator[int]]:
        if block_size not in self._names:
            self._names[block_size] = ([], block_names(self.token_ids, block_size))
        return self._names[block_size]
