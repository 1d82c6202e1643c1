"""Interfaces between the fleet, a rank's link and a request."""

from typing import Protocol

from serving.errors import ServingError
from serving.link.v1 import link_pb2


class LinkedStream(Protocol):
    """A request from the link's view: a ``requests.stream.RequestStream``, or a canary."""

    @property
    def work(self) -> link_pb2.Submit:
        """The message for the rank."""
        ...

    @property
    def request_id(self) -> str:
        """The request id in ``work``."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the rank completed the request, so that there is nothing to abort."""
        ...

    @property
    def done(self) -> bool:
        """Whether the request finished or failed, so that no more output is expected."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that the rank still has to compute for the request."""
        ...

    @property
    def completed(self) -> list[int]:
        """Choices that have ended without the rank's knowledge; the link removes them."""
        ...

    def receive(self, delta: link_pb2.Delta) -> bool:
        """Process a delta from the rank.

        Returns:
            Whether the request is ``done`` or choices are ``completed``.
        """
        ...

    def fail(self, error: ServingError) -> None:
        """End the request with an error."""
        ...


class RankHandle(Protocol):
    """The connection to a joined rank: a ``fleet.rank_link.RankLink``, or a fake in tests."""

    @property
    def inflight_requests(self) -> int:
        """Number of this router's requests on the rank."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that the rank still has to compute for these requests."""
        ...

    @property
    def round_trip(self) -> float | None:
        """Time from the last Ping to its Pong, seconds. None before the first Pong."""
        ...

    def submit(self, stream: LinkedStream) -> None:
        """Send a request without waiting; its deltas go to ``stream``.

        Raises:
            GroupLost: The link is closed.
            Overloaded: The link's send queue is full.
            InvalidRequest: The request exceeds the maximum frame size.
        """
        ...

    def release(self, stream: LinkedStream) -> None:
        """Drop a request, and abort it on the rank unless it is finished."""
        ...

    def fence(self, reason: str, *, planned: bool = False) -> None:
        """Fail all requests on the rank with GroupLost, and abort them there.

        Args:
            reason: The reason, as a sentence.
            planned: Whether the rank is removed on purpose; its requests then do not become
                suspects.
        """
        ...

    def close(self, reason: str) -> None:
        """End the link."""
        ...
