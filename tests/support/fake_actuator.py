"""An actuator that keeps the number of groups in memory."""

from serving.autoscaler.actuators.actuator import ActuatorError


class FakeActuator:
    """Applies every call, or fails every call while ``failing`` is set."""

    def __init__(self, groups: int = 0) -> None:
        self.groups = groups
        self.asked: list[int] = []
        """The argument of each successful ``scale``."""
        self.failing = ""
        """Message of the error that every call raises; empty: calls succeed."""

    async def target(self) -> int:
        self._check()
        return self.groups

    async def scale(self, groups: int) -> None:
        self._check()
        if groups < 0:
            raise ActuatorError(f"invalid number of groups: {groups}")
        self.asked.append(groups)
        self.groups = groups

    def notices(self) -> tuple[str, ...]:
        return ()

    def _check(self) -> None:
        if self.failing:
            raise ActuatorError(self.failing)
