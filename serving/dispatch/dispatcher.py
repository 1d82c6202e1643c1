"""Puts requests on ranks: asks routing, tells the rank."""

from dataclasses import replace

from serving.clock import Clock
from serving.errors import GroupLost, InvalidRequest, Overloaded
from serving.fleet.membership import Roster
from serving.fleet.rank_handle import LinkedStream, RankHandle
from serving.routing.decision import Demand, NoPick, NoPickKind, Pick
from serving.routing.scheduler import Chooser
from serving.settings import RoutingSettings


class Placer:
    """Puts requests on ranks: asks routing, tells the rank."""

    def __init__(self, roster: Roster, settings: RoutingSettings, clock: Clock) -> None:
        self._roster = roster
        self._clock = clock
        self._chooser = Chooser(settings, roster.prefixes)
        self._looks = 0

    def place(self, stream: LinkedStream, demand: Demand) -> tuple[Pick, RankHandle] | str:
        """Send the request to the rank that routing picks, or say why no rank takes it now.

        Raises:
            InvalidRequest: no rank ever takes it.
        """
        pick = self._choose(demand)
        if isinstance(pick, NoPick) and demand.avoid:
            # Better there than nowhere: it would be in the way of all that wait behind it.
            pick = self._choose(replace(demand, avoid=()))
        if isinstance(pick, NoPick):
            if pick.kind is NoPickKind.TOO_LARGE:
                raise InvalidRequest(pick.reason)
            return pick.reason
        handle = self._roster.handle(pick.group_id, pick.epoch, pick.rank)
        if handle is None:
            return "the rank was lost just now"
        try:
            handle.submit(stream)
        except (GroupLost, Overloaded) as error:
            return str(error)
        return pick, handle

    def _choose(self, demand: Demand) -> Pick | NoPick:
        """Look at a part of a large fleet, and at all of it if nothing there takes the request."""
        now = self._clock.monotonic()
        evidence = self._chooser.evidence(demand, now)
        if not demand.explain:
            self._looks += 1
            part = self._roster.shortlist(evidence.groups(), self._looks)
            if part is not None:
                pick = self._chooser.choose(part, demand, now, evidence)
                if isinstance(pick, Pick):
                    return pick
        return self._chooser.choose(self._roster.snapshot(), demand, now, evidence)
