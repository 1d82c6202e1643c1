"""What operators do with a group: cordon, uncordon, drain."""

import asyncio

from serving.fleet.membership import Roster

_LOOK_EVERY = 0.05
"""Seconds."""


class FleetOperations:
    """Operates the groups of one router; a group stays cordoned until it is uncordoned or gone."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def cordon(self, group_id: str, reason: str) -> None:
        """Give the group no new work.

        Raises:
            GroupNotFound: it is not here.
        """
        self._roster.cordon(group_id, reason)

    def uncordon(self, group_id: str) -> None:
        """Give it work again.

        Raises:
            GroupNotFound: it is not here.
        """
        self._roster.uncordon(group_id)

    async def drain(self, group_id: str, timeout: float) -> bool:
        """Cordon the group and wait until its requests are finished; move what is left then.

        Returns:
            Whether all finished there within ``timeout`` seconds; the others go on elsewhere.

        Raises:
            GroupNotFound: it is not here.
        """
        self._roster.cordon(group_id, "drained by an operator")
        try:
            async with asyncio.timeout(timeout):
                while self._roster.inflight_requests(group_id):  # noqa: ASYNC110  bounded above
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            self._roster.hand_over(group_id, f"drained, {timeout:g} s were not enough")
            return False
        return True
