"""Scales groups on Kubernetes: workers are added before groups and removed after them."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.autoscaler.actuators.disruption_budget import DisruptionBudget
from serving.autoscaler.actuators.kubernetes_errors import AccessDenied
from serving.autoscaler.actuators.rbac import REMEDY
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.telemetry import autoscaler_metrics as metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class KubernetesActuator:
    """Keeps a worker group and its disruption budget in step with a Ray Serve application."""

    def __init__(
        self,
        groups: Actuator,
        workers: WorkerGroupActuator,
        budget: DisruptionBudget | None = None,
    ) -> None:
        self._groups = groups
        self._workers = workers
        self._budget = budget
        self._denied: dict[str, str] = {}
        """Denied operations, by name of the attempted operation."""

    async def target(self) -> int:
        """Return the number of groups requested from Ray Serve, and adjust the workers if needed.

        Runs in every cycle, so earlier failures to add or remove workers are retried here.
        """
        groups = await self._groups.target()
        if await self._try("workers", lambda: self._workers.scale(groups)) and self._budget:
            budget, replicas, pods = self._budget, self._workers.replicas, self._workers.pods
            await self._try("disruption budget", lambda: budget.update(replicas, pods))
        return groups

    async def scale(self, groups: int) -> None:
        """Request workers, then groups. Workers are removed in the next cycle.

        By then the ranks have stopped, and the unused pods are known.
        """
        if groups > await self._groups.target():
            await self._workers.scale(groups)
        await self._groups.scale(groups)

    def notices(self) -> Sequence[str]:
        """Return denied operations, and notices about Ray Serve and the RayService."""
        return (*self._groups.notices(), *self._denied.values(), *self._workers.notices())

    async def _try(self, what: str, change: Callable[[], Awaitable[None]]) -> bool:
        """Apply a change; return whether it succeeded. A failure is logged, not raised."""
        try:
            await change()
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("scale").inc()
            log.warning("update failed", what=what, error=str(error))
            if isinstance(error, AccessDenied):
                self._denied[what] = f"{error}. {REMEDY}"
            return False
        self._denied.pop(what, None)
        return True


class KubernetesObserver:
    """A read-only ``KubernetesActuator``, for dry runs and ``explain``."""

    def __init__(
        self,
        groups: Actuator,
        workers: WorkerGroupActuator,
        missing_permissions: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        """Observe ``workers``; ``missing_permissions`` returns the missing ones by RayCluster."""
        self._groups = groups
        self._workers = workers
        self._missing = missing_permissions
        self._found: tuple[str, ...] = ()

    async def target(self) -> int:
        """Return the number of groups requested from Ray Serve; check workers and permissions."""
        found: list[str] = []
        try:
            await self._workers.target()
        except ActuatorError as error:
            found.append(f"{error}. {REMEDY}" if isinstance(error, AccessDenied) else str(error))
        if lacking := await self._missing(self._workers.present):
            found.append(
                f"Kubernetes: this account lacks permission to {', '.join(lacking)}. {REMEDY}"
            )
        self._found = tuple(found)
        return await self._groups.target()

    async def scale(self, groups: int) -> None:
        """Reject the call, because a dry run changes nothing.

        Raises:
            ActuatorError: Always.
        """
        raise ActuatorError(f"a dry run cannot request {groups} groups")

    def notices(self) -> Sequence[str]:
        """Return problems found by ``target``, and notices about Ray Serve and the RayService."""
        return (*self._groups.notices(), *self._found, *self._workers.notices())
