"""Which part of a large fleet a request is offered, so that choosing costs the same at any size.

Scoring all of 512 ranks takes longer than all else that the router does for a request, and brings
next to nothing: the best of a few dozen is nearly the best of all (Mitzenmacher, "The power of two
choices in randomized load balancing", 2001). What a request's prefix or session speaks for is
always among them.
"""

from collections.abc import Collection, Mapping

from serving.fleet.group import Group
from serving.routing.snapshot import MemberState

ENOUGH = 32
"""Ranks that are looked at, whole groups at a time, if the fleet has more."""
_LEAST_GROUPS = 2


class ReadyGroups:
    """The groups that take work, as long as none comes, goes or changes its state."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._ready = {
            name: groups[name] for name in sorted(groups) if groups[name].state is MemberState.READY
        }
        self._order = list(self._ready.values())
        self._ranks = sum(len(group.members) for group in self._order)

    def some(self, wanted: Collection[str], turn: int) -> list[Group] | None:
        """Return the wanted groups and enough others, in the order of their ids.

        Args:
            wanted: ids; those that are not ready are left out.
            turn: counts the calls: each looks at the groups after those of the call before.

        Returns:
            None if that would be all, or nearly.
        """
        if self._ranks <= 2 * ENOUGH or len(self._order) <= 2 * _LEAST_GROUPS:
            return None
        chosen = {name: self._ready[name] for name in wanted if name in self._ready}
        width = max(_LEAST_GROUPS, -(-ENOUGH * len(self._order) // self._ranks))
        start = turn * width
        for index in range(start, start + width):
            group = self._order[index % len(self._order)]
            chosen[group.group_id] = group
        return [chosen[name] for name in sorted(chosen)]
