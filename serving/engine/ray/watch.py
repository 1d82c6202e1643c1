"""Progress of a deployment of the groups, and detection of its final failure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from serving.clock import Clock
from serving.engine.ray import cluster
from serving.engine.ray.placement import GroupNeeds, advice, explain_gap
from serving.engine.ray.rendezvous import GcsStore
from serving.engine.ray.startup_progress import RankReport, Stage, StageBoard
from serving.errors import EngineError, PlacementError, ServingError, SettingsError

_ERRORS: dict[str, type[ServingError]] = {
    "SettingsError": SettingsError,
    "PlacementError": PlacementError,
}
"""Error types of ranks that are preserved; all others become ``EngineError``."""

_FINAL = {"SettingsError"}
"""Error types that a restart cannot resolve."""

SETTLE_SECONDS = 1.0
"""Time before missing resources are reported, seconds. Resources are reserved shortly before the
group is shown as placed."""


class Phase(StrEnum):
    """State of the application in Serve."""

    ABSENT = "absent"
    DEPLOYING = "deploying"
    RUNNING = "running"
    FAILED = "failed"
    UNHEALTHY = "unhealthy"


_PHASES = {
    "NOT_STARTED": Phase.DEPLOYING,
    "DEPLOYING": Phase.DEPLOYING,
    "RUNNING": Phase.RUNNING,
    "DEPLOY_FAILED": Phase.FAILED,
    "UNHEALTHY": Phase.UNHEALTHY,
    "DELETING": Phase.ABSENT,
}


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A snapshot of the deployment."""

    phase: Phase
    message: str
    """Serve's message, which can have many lines."""
    reports: tuple[RankReport, ...]
    """Reports made since the start of the watch."""


def failure_of(view: DeploymentView) -> ServingError | None:
    """Return the error that ends the deployment, or ``None`` while it can still succeed.

    A settings error of a rank is final. After any other error Serve retries; the error becomes
    final when Serve fails the deployment.
    """
    failed = [report for report in view.reports if report.stage is Stage.FAILED]
    for report in failed:
        if report.error_type in _FINAL:
            return _ERRORS[report.error_type](report.error)
    if view.phase is not Phase.FAILED:
        return None
    if failed:
        last = max(failed, key=lambda report: report.made_at)
        if last.error_type in _ERRORS:
            return _ERRORS[last.error_type](last.error)
        return EngineError(f"rank {last.rank} did not start: {last.error}")
    return EngineError(f"Ray Serve failed the deployment: {_last_line(view.message)}")


def final_reports(
    reports: Sequence[RankReport], gangs: Mapping[str, str]
) -> tuple[RankReport, ...]:
    """Return the reports of existing gangs, and all reports of failures.

    A rank that was killed or lost with its node leaves a stale report.

    Args:
        reports: Reports of all ranks.
        gangs: Placement-group states by gang id. Read them after the reports, because Serve
            creates the placement group before the ranks and removes it after them.
    """
    there = {gang for gang, state in gangs.items() if state != "REMOVED"}
    return tuple(
        report for report in reports if report.gang_id in there or report.stage is Stage.FAILED
    )


class DeploymentWatch:
    """Watches one application; Ray must be connected."""

    def __init__(self, app: str, clock: Clock, *, since: float | None = None) -> None:
        """Watch an application.

        Args:
            app: Name of the Serve application.
            clock: Source of time.
            since: Time before which reports are ignored, seconds since the Unix epoch; by default
                the current time.
        """
        self._app = app
        self._board = StageBoard(GcsStore(), app)
        # One second earlier, because the clocks of the nodes can differ.
        self._since = clock.time() - 1.0 if since is None else since

    def poll(self) -> DeploymentView:
        """Return the current state."""
        from ray import serve

        found = serve.status().applications.get(self._app)
        reports = self._board.read(since=self._since)
        if found is None:
            return DeploymentView(Phase.ABSENT, "", reports)
        phase = _PHASES.get(str(found.status.value), Phase.DEPLOYING)
        messages = [found.message, *(item.message for item in found.deployments.values())]
        return DeploymentView(phase, "\n".join(filter(None, messages)), reports)


class PlacementWatch:
    """Raises an error if a group cannot be placed in time."""

    def __init__(self, app: str, needs: GroupNeeds, timeout: float, clock: Clock) -> None:
        """Watch an application.

        Args:
            app: Name of the Serve application.
            needs: Needs of all groups.
            timeout: Maximum time without sufficient resources, seconds.
            clock: Source of time.
        """
        self._app = app
        self._needs = needs
        self._timeout = timeout
        self._clock = clock
        self._missing_since: float | None = None

    def check(self) -> str | None:
        """Return a description of the missing resources, or ``None`` if all groups fit.

        Raises:
            PlacementError: Resources have been missing for ``timeout`` seconds.
        """
        gap = self._gap()
        now = self._clock.monotonic()
        if gap is None:
            self._missing_since = None
            return None
        if self._missing_since is None:
            self._missing_since = now
        missing_for = now - self._missing_since
        if missing_for >= self._timeout:
            raise PlacementError(f"no room after {self._timeout:g} s: {gap}. {advice(self._needs)}")
        return gap if missing_for >= SETTLE_SECONDS else None

    def _gap(self) -> str | None:
        needs = self._needs
        # Read nodes first: a group that is placed in between then counts as placed.
        nodes = cluster.nodes()
        missing = needs.groups - cluster.placed_gangs(self._app)
        if missing <= 0:
            return None
        return explain_gap(nodes, replace(needs, groups=missing))


def undeploy(app: str) -> None:
    """Start deleting the application and return immediately."""
    from ray import serve

    serve.delete(app, _blocking=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
