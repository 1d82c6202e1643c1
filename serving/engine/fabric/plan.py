"""What one run of the check is asked to do, and the names and limits that follow from it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from serving.errors import EngineError, SettingsError

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.IGNORECASE)
_UNITS = {
    "": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip
_WORD = 4
"""Contents are made of 32-bit words."""


class FabricError(EngineError):
    """The pods of a group cannot exchange data; the message says which, and why."""

    hint = ""


class Backend(StrEnum):
    """Collectives library."""

    AUTO = "auto"
    GLOO = "gloo"
    NCCL = "nccl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to check, the same at every peer but for ``index``."""

    peers: int
    index: int
    leader_host: str
    leader_port: int
    workers: int | None = None
    """Workers of each peer; ``None``: one for each GPU, one without GPUs."""
    backend: Backend = Backend.AUTO
    size: int = 2**26
    """Bytes that each worker sends in one round."""
    rounds: int = 5
    timeout: float = 60.0
    """Seconds from the start of this process to its end; half of it to wait for the others."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            SettingsError: a value is out of range.
        """
        if self.peers < 1:
            raise SettingsError(f"--peers {self.peers}: at least 1")
        if not 0 <= self.index < self.peers:
            raise SettingsError(
                f"--index {self.index}: with --peers {self.peers} it is 0 to {self.peers - 1}"
            )
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"--workers-per-peer {self.workers}: at least 1")
        if self.size < _WORD:
            raise SettingsError(f"--bytes {self.size}: at least {_WORD}")
        if self.rounds < 1:
            raise SettingsError(f"--rounds {self.rounds}: at least 1")
        if self.timeout < MIN_TIMEOUT:
            raise SettingsError(f"--timeout {self.timeout:g}: at least {MIN_TIMEOUT:g} seconds")

    @property
    def join_limit(self) -> float:
        """Seconds to wait until all peers are there."""
        return self.timeout / 2

    @property
    def check_limit(self) -> float:
        """Seconds from then to the verdict; leaves time to tell it to the others."""
        return self.timeout / 2 - 2.0

    @property
    def silence(self) -> float:
        """Seconds without a sign of life after which a peer counts as cut off."""
        return min(10.0, self.timeout / 8)

    @property
    def stall(self) -> float:
        """Seconds without progress of any worker after which data do not move."""
        return min(60.0, self.timeout / 6)

    def name(self, index: int) -> str:
        """Return the name of a peer's pod as far as the leader's tells: JOB-0.SERVICE, JOB-1.…."""
        label, dot, domain = self.leader_host.partition(".")
        stem, dash, number = label.rpartition("-")
        if number != "0" or not dash:
            return ""
        return f"{stem}-{index}{dot}{domain}"


MIN_TIMEOUT = 16.0
"""Seconds; below, starting torch takes longer than what is left."""


def parse_size(text: str) -> int:
    """Return bytes of ``64MiB``, ``1 GB`` or ``4096``.

    Raises:
        SettingsError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"--bytes {text}: write a whole number with B, KiB, MiB or GiB")
    return int(match.group(1)) * _UNITS[(match.group(2) or "").lower()]


def parse_leader(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        SettingsError: it is not written so.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingsError(f"--leader {text}: write HOST:PORT, the same at every peer")
    return host, int(port)


def pairings(peers: int) -> Iterator[dict[int, int]]:
    """Yield rounds of a tournament in which every two peers meet once: peer to partner.

    In each round a peer has one partner or, when their number is odd, none in one of them.
    """
    circle = list(range(peers)) + ([-1] if peers % 2 else [])
    half = len(circle) // 2
    for _ in range(len(circle) - 1):
        meeting = {}
        for one, other in zip(circle[:half], reversed(circle[half:]), strict=True):
            if -1 not in {one, other}:
                meeting[one], meeting[other] = other, one
        yield meeting
        circle[1:] = [circle[-1], *circle[1:-1]]
