"""The states of a group and their transitions, as one table."""

from enum import StrEnum

from serving.routing.snapshot import MemberState


class GroupEvent(StrEnum):
    """What can happen to a group."""

    COMPLETE = "complete"
    """All ranks of the epoch are joined, healthy, and have generated the canary's token."""
    DRAIN = "drain"
    """A rank said that it takes no new work, or an operator cordoned the group."""
    UNCORDON = "uncordon"
    """The operator gave it back."""
    FAULT = "fault"
    """A rank was lost, or reported that it failed or stalled."""
    EMPTY = "empty"
    """The last rank left."""
    REPLACED = "replaced"
    """A newer epoch of the group joined."""


_S, _E = MemberState, GroupEvent

TRANSITIONS: dict[tuple[MemberState, GroupEvent], MemberState] = {
    (_S.JOINING, _E.COMPLETE): _S.READY,
    (_S.JOINING, _E.DRAIN): _S.DRAINING,
    (_S.JOINING, _E.FAULT): _S.FENCED,
    (_S.JOINING, _E.EMPTY): _S.GONE,
    (_S.JOINING, _E.REPLACED): _S.GONE,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.READY, _E.FAULT): _S.FENCED,
    (_S.READY, _E.EMPTY): _S.GONE,
    (_S.READY, _E.REPLACED): _S.GONE,
    (_S.DRAINING, _E.UNCORDON): _S.JOINING,
    (_S.DRAINING, _E.FAULT): _S.FENCED,
    (_S.DRAINING, _E.EMPTY): _S.GONE,
    (_S.DRAINING, _E.REPLACED): _S.GONE,
    # A cut link or a passing stall: the same ranks are back, all of them, and healthy.
    (_S.FENCED, _E.COMPLETE): _S.READY,
    (_S.FENCED, _E.EMPTY): _S.GONE,
    (_S.FENCED, _E.REPLACED): _S.GONE,
}
"""Pairs that are not here leave the state as it is. Nothing leaves GONE."""
