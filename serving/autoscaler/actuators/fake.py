"""Groups that are a number in memory; for tests and the simulation."""

from serving.autoscaler.actuators.actuator import ActuatorError


class FakeActuator:
    """Does what it is told, or fails as it is told."""

    def __init__(self, groups: int = 0) -> None:
        self.groups = groups
        self.asked: list[int] = []
        self.failing = ""
        """Why every call fails; empty: none does."""

    async def target(self) -> int:
        """Return what was asked for last."""
        self._check()
        return self.groups

    async def scale(self, groups: int) -> None:
        """Take the number."""
        self._check()
        if groups < 0:
            raise ActuatorError(f"{groups} groups cannot be")
        self.asked.append(groups)
        self.groups = groups

    def notices(self) -> tuple[str, ...]:
        """Return nothing: all is well here."""
        return ()

    def _check(self) -> None:
        if self.failing:
            raise ActuatorError(self.failing)
