"""What a worker sends and expects: known contents, so that a wrong byte is found and named."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ODD = 0x5851F42D
_MASK = 2**31 - 1


class Contents:
    """Makes and checks tensors of ``words`` 32-bit words.

    Each word depends on its place, the sender, the receiver and the round: data of another sender
    or round, shifted data and zeros are all told apart.
    """

    def __init__(self, words: int, device: str) -> None:
        import torch

        places = torch.arange(words, dtype=torch.int64, device=device)
        self._base = ((places * _ODD) & _MASK).to(torch.int32)

    def make(self, source: int, target: int, number: int) -> "torch.Tensor":
        """Return ``[words]`` (int32) as ``source`` sends them to ``target`` in round ``number``."""
        return self._base ^ _seed(source, target, number)

    def wrong(
        self, received: "torch.Tensor", source: int, target: int, number: int
    ) -> tuple[int, int] | None:
        """Compare ``received`` ``[words]`` with what was sent.

        Returns:
            How many words differ and the place of the first one's first byte; ``None`` if all are
            right.
        """
        differs = received.ne(self.make(source, target, number))
        count = int(differs.sum())
        if not count:
            return None
        return count, 4 * int(differs.nonzero()[0])


def _seed(source: int, target: int, number: int) -> int:
    return ((source + 1) * 73856093 ^ (target + 1) * 19349663 ^ (number + 1) * 83492791) & _MASK
