"""Anonymous memory that the processes of a group share.

The memory is a memfd: it has no name, is not limited by the size of /dev/shm, and is freed by the
kernel when the last process that maps it ends or is killed. Another process opens it through
``/proc/PID/fd``; a random token in its first bytes proves that it is the expected memory, and thus
that both processes run on one node and see the same process ids.
"""

import mmap
import os
import secrets
from dataclasses import dataclass

import torch

NAME = "moe-serving-exchange"
"""Shown in ``/proc/PID/maps`` as ``memfd:moe-serving-exchange``."""
TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Offer:
    """The information that another process needs to open a segment."""

    pid: int
    descriptor: int
    token: bytes
    size: int


class Segment:
    """Memory mapped by this process; unmapped when the object and its views are gone."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Map the memory of an open descriptor; the descriptor may be closed afterwards.

        Raises:
            OSError: The memory cannot be mapped.
        """
        self._mapping = mmap.mmap(descriptor, size)
        self.bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        """``[size]``, uint8."""
        self.words = memoryview(self._mapping).cast("I")
        """The same memory as unsigned 32-bit words."""

    @property
    def address(self) -> int:
        """Address of the first byte in this process."""
        return int(self.bytes.data_ptr())


class OwnedSegment(Segment):
    """A segment that this process created and offers to others."""

    def __init__(self, size: int) -> None:
        """Create ``size`` bytes of zeroed memory; a page uses memory once it is written.

        Raises:
            OSError: The kernel has no memfd, or a limit is reached.
        """
        self._descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._descriptor, size)
            super().__init__(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        token = secrets.token_bytes(TOKEN_BYTES)
        self._mapping[:TOKEN_BYTES] = token
        self.offer = Offer(os.getpid(), self._descriptor, token, size)

    def withdraw(self) -> None:
        """Close the descriptor, so that no further process can open the segment."""
        os.close(self._descriptor)


def attach(offer: Offer) -> Segment:
    """Map another process's segment.

    Raises:
        OSError: The process is not visible from here, belongs to another user, or has withdrawn
            the offer; or its descriptor is not the offered memory.
    """
    descriptor = os.open(f"/proc/{offer.pid}/fd/{offer.descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, TOKEN_BYTES, 0) != offer.token:
            raise OSError(f"process {offer.pid} has another file in place of the offered memory")
        return Segment(descriptor, offer.size)
    finally:
        os.close(descriptor)
