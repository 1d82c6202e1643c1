"""The interface through which the control loop adds and removes groups."""

from collections.abc import Sequence
from typing import Protocol

from serving.errors import ServingError


class ActuatorError(ServingError):
    """An external system rejected a change, reported a conflict or did not respond.

    The change may or may not have been made. The loop leaves the groups unchanged and retries with
    the next decision.
    """


class Actuator(Protocol):
    """Reads and sets the number of groups. Every call has a timeout."""

    async def target(self) -> int:
        """Return the number of groups currently requested, running or not.

        Raises:
            ActuatorError: The number is unknown.
        """
        ...

    async def scale(self, groups: int) -> None:
        """Request ``groups`` groups and return once the request is accepted. Idempotent.

        Groups are drained before they are removed.

        Raises:
            ActuatorError: The request was not accepted.
        """
        ...

    def notices(self) -> Sequence[str]:
        """Return problems found by the latest calls that an operator should fix."""
        ...
