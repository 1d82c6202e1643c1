"""Whether a request is what kills groups: pure rules over its losses.

A group dies as a whole, and which of its ranks failed first cannot be told from outside: the
others fail in the same collective, and may be heard first. So all that a group had hardly begun
are suspects, and none is blamed yet. They go on apart from one another (``quarantine``), each
alone on its group for its first tokens: when that dies too, one request is named.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from serving.settings import FleetSettings

PROBATION_TOKENS = 2
"""What a suspect must generate before the next one may start: a request that kills with its
prompt, or at the token where it was, does so in the first step or, where one was on its way when
the group died, in the second. More would only let the innocent wait: hardware fails more often."""


class Verdict(Enum):
    """What a loss says about the request that was there."""

    INNOCENT = auto()
    """The group ran it for a while and did not die of it; what was before is forgotten."""
    SUSPECT = auto()
    """It may have been the cause, as others may."""
    POISON = auto()
    """It was the only one that could be meant."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is held against a request."""

    losses: int = 0
    """Groups that were lost just after they had begun it, without one in between that ran it."""

    def probation(self, settings: FleetSettings) -> int:
        """Return the tokens that it has to generate with no other suspect beside it; 0: none.

        Who dies a second time among others gets the long one: some requests kill later.
        """
        if not self.losses:
            return 0
        return PROBATION_TOKENS if self.losses == 1 else settings.suspect_tokens

    def after_loss(
        self, seen_tokens: int, settings: FleetSettings, *, alone: bool
    ) -> tuple["Suspicion", Verdict]:
        """Judge a group's loss.

        Args:
            seen_tokens: how many tokens of the request it had generated.
            settings: from how many on it is not suspected, and how many losses are too many.
            alone: it was on probation there, and no other suspect was beside it.
        """
        if seen_tokens >= settings.suspect_tokens:
            return Suspicion(), Verdict.INNOCENT
        after = replace(self, losses=self.losses + 1)
        if after.losses < settings.suspect_losses:
            return after, Verdict.SUSPECT
        named = alone or settings.suspect_losses == 1
        return after, Verdict.POISON if named else Verdict.SUSPECT
