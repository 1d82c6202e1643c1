"""Ray Serve's groups on Kubernetes: workers first on the way up, last on the way down."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.autoscaler.actuators.disruption_budget import DisruptionBudget
from serving.autoscaler.actuators.kubernetes_errors import Refused
from serving.autoscaler.actuators.rights import REMEDY
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class KubernetesActuator:
    """Keeps a worker group, and its disruption budget, in step with a Ray Serve application."""

    def __init__(
        self,
        groups: Actuator,
        workers: WorkerGroupActuator,
        budget: DisruptionBudget | None = None,
    ) -> None:
        self._groups = groups
        self._workers = workers
        self._budget = budget
        self._refused: dict[str, str] = {}
        """What the server forbids, by what was tried."""

    async def target(self) -> int:
        """Return the groups that Ray Serve is asked for; brings the workers to it if need be.

        Workers that could not be had or let go before are asked for again here, each turn.
        """
        groups = await self._groups.target()
        if await self._tried("workers", lambda: self._workers.scale(groups)) and self._budget:
            budget, replicas, pods = self._budget, self._workers.replicas, self._workers.pods
            await self._tried("disruption budget", lambda: budget.follow(replicas, pods))
        return groups

    async def scale(self, groups: int) -> None:
        """Ask for workers, then for groups; fewer workers are left to the next turn.

        By then the ranks are gone, and it is known which pods are unused.
        """
        if groups > await self._groups.target():
            await self._workers.scale(groups)
        await self._groups.scale(groups)

    def notices(self) -> Sequence[str]:
        """Return what the server forbids, and what is to be known of the RayService."""
        return (*self._groups.notices(), *self._refused.values(), *self._workers.notices())

    async def _tried(self, what: str, change: Callable[[], Awaitable[None]]) -> bool:
        """Return whether it was done; the API server's trouble does not hide the groups."""
        try:
            await change()
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("scale").inc()
            log.warning("stays as it is", what=what, error=str(error))
            if isinstance(error, Refused):
                self._refused[what] = f"{error}. {REMEDY}"
            return False
        self._refused.pop(what, None)
        return True


class KubernetesObserver:
    """The same without changing anything: what a dry run and ``explain`` look at."""

    def __init__(
        self,
        groups: Actuator,
        workers: WorkerGroupActuator,
        missing_rights: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        """Look at ``workers``; ``missing_rights`` says what may not be done to its RayCluster."""
        self._groups = groups
        self._workers = workers
        self._missing = missing_rights
        self._found: tuple[str, ...] = ()

    async def target(self) -> int:
        """Return the groups that Ray Serve is asked for, and look at the worker group."""
        found: list[str] = []
        try:
            await self._workers.target()
        except ActuatorError as error:
            found.append(f"{error}. {REMEDY}" if isinstance(error, Refused) else str(error))
        if lacking := await self._missing(self._workers.present):
            found.append(f"Kubernetes: this account may not {', '.join(lacking)}. {REMEDY}")
        self._found = tuple(found)
        return await self._groups.target()

    async def scale(self, groups: int) -> None:
        """Refuse: a dry run changes nothing.

        Raises:
            ActuatorError: always.
        """
        raise ActuatorError(f"a dry run does not ask for {groups} groups")

    def notices(self) -> Sequence[str]:
        """Return what was found."""
        return (*self._groups.notices(), *self._found, *self._workers.notices())
