"""What the loop asks of whoever makes groups more or fewer."""

from collections.abc import Sequence
from typing import Protocol

from serving.errors import ServingError


class ActuatorError(ServingError):
    """The outside system refuses, conflicts or does not answer; nothing is known to have changed.

    The loop holds and tries again with the next decision.
    """


class Actuator(Protocol):
    """Sets the number of whole groups. Every call is bounded in time."""

    async def target(self) -> int:
        """Return how many groups are asked for at present, running or not.

        Raises:
            ActuatorError: nobody can say.
        """
        ...

    async def scale(self, groups: int) -> None:
        """Ask for so many groups and return when the request is accepted; safe to repeat.

        Fewer groups are drained before they go.

        Raises:
            ActuatorError: it was not accepted.
        """
        ...

    def notices(self) -> Sequence[str]:
        """Return what an operator should change, as seen by the last calls; empty: nothing."""
        ...
