"""What the roster, a link and a request know of each other."""

from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from serving.errors import ServingError
from serving.link.v1 import link_pb2


@dataclass(frozen=True, slots=True)
class MemberKey:
    """One rank of one epoch of one group."""

    group_id: str
    epoch: str
    rank: int

    @override
    def __str__(self) -> str:
        return f"rank {self.rank} of group {self.group_id} (epoch {self.epoch})"


class LinkedStream(Protocol):
    """A request as its link sees it (``stream.RequestStream``, or a canary)."""

    @property
    def work(self) -> link_pb2.Submit:
        """What is sent to the rank."""
        ...

    @property
    def request_id(self) -> str:
        """Of ``work``."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the rank is done with it, well: there is nothing to abort."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing more can come."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that the rank has still to compute for it."""
        ...

    def receive(self, delta: link_pb2.Delta) -> None:
        """Take in what the rank sent."""
        ...

    def fail(self, error: ServingError) -> None:
        """End it with an error."""
        ...


class RankHandle(Protocol):
    """The way to a joined rank (``rank_link.RankLink``, or a fake in tests)."""

    @property
    def inflight_requests(self) -> int:
        """Requests on the rank now."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute for them."""
        ...

    @property
    def round_trip(self) -> float | None:
        """Seconds from Ping to Pong, last seen."""
        ...

    def submit(self, stream: "LinkedStream") -> None:
        """Send a request; its deltas go to ``stream``. Does not wait.

        Raises:
            GroupLost: the link is closed.
            Overloaded: its send queue is full.
            InvalidRequest: the request is larger than a frame may be.
        """
        ...

    def release(self, stream: "LinkedStream") -> None:
        """Forget a request; the rank is told to abort it unless it is finished."""
        ...

    def fence(self, reason: str, *, planned: bool = False) -> None:
        """Fail all requests on the rank with GroupLost and abort them there.

        Args:
            reason: why, in words.
            planned: it is taken away on purpose; nothing speaks against its requests.
        """
        ...

    def close(self, reason: str) -> None:
        """End the link."""
        ...
