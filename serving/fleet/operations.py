"""Operations on a group: cordon, uncordon, drain."""

import asyncio

from serving.fleet.models import FleetModels

_POLL_INTERVAL = 0.05
"""Interval at which a draining group is checked for running requests, seconds."""


class FleetOperations:
    """Operations on one router's groups; a cordon lasts until it is undone or the group is gone."""

    def __init__(self, models: FleetModels) -> None:
        self._models = models

    def cordon(self, group_id: str, reason: str) -> None:
        """Stop routing new requests to a group; running requests continue.

        Raises:
            GroupNotFound: No such group is joined.
        """
        self._models.owner(group_id).cordon(group_id, reason)

    def uncordon(self, group_id: str) -> None:
        """Route requests to a cordoned group again, once nothing else prevents it.

        Raises:
            GroupNotFound: No such group is joined.
        """
        self._models.owner(group_id).uncordon(group_id)

    async def drain(self, group_id: str, timeout: float) -> bool:
        """Drain a group: stop new requests, let running ones finish, then move the rest.

        Args:
            group_id: The group.
            timeout: Time for running requests to finish, seconds.

        Returns:
            Whether all requests finished in time; the remaining ones continue on other groups.

        Raises:
            GroupNotFound: No such group is joined.
        """
        membership = self._models.owner(group_id)
        membership.cordon(group_id, "drained by an operator")
        try:
            async with asyncio.timeout(timeout):
                while membership.inflight_requests(group_id):  # noqa: ASYNC110  bounded above
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            membership.move_requests(
                group_id, f"drained, but requests were still running after {timeout:g} s"
            )
            return False
        return True
