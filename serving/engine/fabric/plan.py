"""Plan of one run of the check, with the names and limits derived from it."""

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
"""Size of a word of test data, bytes."""


class FabricError(EngineError):
    """The pods of a group cannot exchange data; the message names the pods and the reason."""

    hint = ""


class Backend(StrEnum):
    """Communication library."""

    AUTO = "auto"
    GLOO = "gloo"
    NCCL = "nccl"


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of the check; identical on all peers except for ``index``."""

    peers: int
    index: int
    leader_host: str
    leader_port: int
    workers: int | None = None
    """Number of workers per peer. None means one per GPU, or one if there is no GPU."""
    backend: Backend = Backend.AUTO
    size: int = 2**26
    """Number of bytes that each worker sends per round."""
    rounds: int = 5
    timeout: float = 60.0
    """Maximum duration of the check, seconds; at most half of it is spent waiting for other
    peers."""

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            SettingsError: A value is out of range.
        """
        if self.peers < 1:
            raise SettingsError(f"--peers must be at least 1, got {self.peers}")
        if not 0 <= self.index < self.peers:
            raise SettingsError(
                f"--index must be 0 to {self.peers - 1} with --peers {self.peers}, got {self.index}"
            )
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"--workers-per-peer must be at least 1, got {self.workers}")
        if self.size < _WORD:
            raise SettingsError(f"--bytes must be at least {_WORD}, got {self.size}")
        if self.rounds < 1:
            raise SettingsError(f"--rounds must be at least 1, got {self.rounds}")
        if self.timeout < MIN_TIMEOUT:
            raise SettingsError(
                f"--timeout must be at least {MIN_TIMEOUT:g} s, got {self.timeout:g}"
            )

    @property
    def join_limit(self) -> float:
        """Maximum time for all peers to join, seconds."""
        return self.timeout / 2

    @property
    def check_limit(self) -> float:
        """Maximum time from joining to the verdict, seconds; leaves time to send the verdict."""
        return self.timeout / 2 - 2.0

    @property
    def silence(self) -> float:
        """Time without heartbeats after which a peer counts as lost, seconds."""
        return min(10.0, self.timeout / 8)

    @property
    def stall(self) -> float:
        """Time without progress of any worker after which the exchange is stalled, seconds."""
        return min(60.0, self.timeout / 6)

    def name(self, index: int) -> str:
        """Return the name of a peer's pod; empty unless the leader is named JOB-0.SERVICE."""
        label, dot, domain = self.leader_host.partition(".")
        stem, dash, number = label.rpartition("-")
        if number != "0" or not dash:
            return ""
        return f"{stem}-{index}{dot}{domain}"


MIN_TIMEOUT = 16.0
"""Minimum of ``timeout``, seconds; a shorter time does not suffice to start torch."""


def parse_size(text: str) -> int:
    """Parse a size such as ``64MiB``, ``1 GB`` or ``4096``; return bytes.

    Raises:
        SettingsError: The text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"--bytes must be a whole number with B, KiB, MiB or GiB, got {text}")
    return int(match.group(1)) * _UNITS[(match.group(2) or "").lower()]


def parse_leader(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT`` or ``[IPv6]:PORT``; return host and port.

    Raises:
        SettingsError: The text is not an address.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingsError(f"--leader must be HOST:PORT, the same on every peer, got {text}")
    return host, int(port)


def pairings(peers: int) -> Iterator[dict[int, int]]:
    """Yield the rounds of a round-robin tournament: every pair of peers meets once.

    Each round maps peers to partners. With an odd number of peers, one peer pauses in each round.
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
