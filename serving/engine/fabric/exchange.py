"""Test data that workers exchange; wrong bytes are detected and located."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ODD = 0x5851F42D
_MASK = 2**31 - 1


class Contents:
    """Generates and verifies tensors of ``words`` 32-bit words.

    Each word depends on its position, the sender, the receiver and the round. Data of another
    sender or round, shifted data and zeros are therefore detected.
    """

    def __init__(self, words: int, device: str) -> None:
        import torch

        places = torch.arange(words, dtype=torch.int64, device=device)
        self._base = ((places * _ODD) & _MASK).to(torch.int32)

    def make(self, source: int, target: int, number: int) -> "torch.Tensor":
        """Return ``[words]`` (int32), sent from ``source`` to ``target`` in round ``number``."""
        return self._base ^ _seed(source, target, number)

    def wrong(
        self, received: "torch.Tensor", source: int, target: int, number: int
    ) -> tuple[int, int] | None:
        """Compare ``received`` (``[words]``) with the words that were sent.

        Returns:
            The number of wrong words and the byte offset of the first one, or ``None`` if all
            words are correct.
        """
        differs = received.ne(self.make(source, target, number))
        count = int(differs.sum())
        if not count:
            return None
        return count, 4 * int(differs.nonzero()[0])


def _seed(source: int, target: int, number: int) -> int:
    return ((source + 1) * 73856093 ^ (target + 1) * 19349663 ^ (number + 1) * 83492791) & _MASK
