"""Ray Serve's groups on Kubernetes: workers first on the way up, last on the way down."""

import structlog

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class KubernetesActuator:
    """Keeps a worker group in step with the groups of a Ray Serve application."""

    def __init__(self, groups: Actuator, workers: Actuator) -> None:
        self._groups = groups
        self._workers = workers

    async def target(self) -> int:
        """Return the groups that Ray Serve is asked for; brings the workers to it if need be.

        Workers that could not be had or let go before are asked for again here, each turn.
        """
        groups = await self._groups.target()
        try:
            await self._workers.scale(groups)
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("scale").inc()
            log.warning("workers stay as they are", error=str(error))
        return groups

    async def scale(self, groups: int) -> None:
        """Ask for workers, then for groups; fewer workers are left to the next turn.

        By then the ranks are gone, and it is known which pods are unused.
        """
        if groups > await self._groups.target():
            await self._workers.scale(groups)
        await self._groups.scale(groups)
