"""``moe-serving group``: deploys groups of ranks on a running Ray cluster."""

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.local.progress import Progress, make_progress
from serving.cli.options import (
    ConfigOption,
    GroupsOption,
    ModelOption,
    PoolOption,
    RanksOption,
    SetOption,
    SpeculativeOption,
    settings_from,
)
from serving.clock import SystemClock
from serving.errors import EngineError, ServingError
from serving.settings import Settings, pool_settings

if TYPE_CHECKING:
    from serving.engine.ray.watch import DeploymentWatch

POLL_SECONDS = 0.5


class Action(StrEnum):
    """Subcommands."""

    DEPLOY = "deploy"
    DELETE = "delete"
    STATUS = "status"


def group_command(
    action: Annotated[
        Action, typer.Argument(help="Deploy the groups, delete them, or show their status.")
    ],
    config: ConfigOption = None,
    sets: SetOption = None,
    groups: GroupsOption = None,
    ranks: RanksOption = None,
    speculative: SpeculativeOption = None,
    model: ModelOption = None,
    pool: PoolOption = None,
    *,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Ray cluster: host:port or auto (ray.address; default: auto)."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all ranks are running.")] = True,
) -> None:
    """Deploy groups of ranks as a Ray Serve application, delete it, or show its status.

    The ranks connect to the routers in link.routers; "moe-serving router" starts one. If a group
    cannot be placed within group.placement_timeout, the command fails with an error that names the
    missing resources.
    """
    settings = pool_settings(
        settings_from(
            config, sets, groups=groups, ranks=ranks, speculative=speculative, model=model
        ),
        pool,
    )
    # Importing Ray takes seconds, so report settings errors first.
    from serving.engine.ray import cluster

    cluster.connect(address or settings.ray.address or "auto")
    try:
        if action is Action.DEPLOY:
            deploy_groups(settings, wait=wait)
        elif action is Action.DELETE:
            delete_groups(settings)
        else:
            show_groups(settings)
    finally:
        cluster.disconnect()


def deploy_groups(settings: Settings, *, wait: bool) -> None:
    """Deploy the groups; requires a connection to Ray.

    Args:
        settings: Settings of the groups.
        wait: Whether to wait until every rank is running.

    Raises:
        PlacementError: The cluster lacks resources; a new deployment is deleted again.
        ServingError: A rank cannot start; a new deployment is deleted again.
    """
    from serving.engine.ray import deployment
    from serving.engine.ray import watch as deployment_watch

    app = settings.ray.app_name
    watch = deployment_watch.DeploymentWatch(app, SystemClock())
    new = watch.poll().phase is deployment_watch.Phase.ABSENT
    if new and settings.group.placement == "strict_spread":
        # Ray would pack ranks that it cannot spread, so wait for resources first.
        with make_progress() as progress:
            _wait_room(settings, progress)
    deployment.deploy(settings)
    if not wait:
        return
    try:
        with make_progress() as progress:
            _wait_running(settings, watch, progress)
    except ServingError:
        if new:
            # Otherwise Serve keeps retrying and holds the resources that it already has.
            deployment_watch.undeploy(app)
        raise


def delete_groups(settings: Settings) -> None:
    """Delete the application; wait until its ranks have ended.

    Raises:
        EngineError: The ranks have not ended after three times the stop timeout.
    """
    from serving.engine.ray import deployment
    from serving.engine.ray import watch as deployment_watch

    app = settings.ray.app_name
    watch = deployment_watch.DeploymentWatch(app, SystemClock())
    deployment_watch.undeploy(app)
    deadline = time.monotonic() + 3 * deployment.STOP_TIMEOUT
    while watch.poll().phase is not deployment_watch.Phase.ABSENT:
        if time.monotonic() >= deadline:
            raise EngineError(f"application {app} is still being deleted; see serve status")
        time.sleep(POLL_SECONDS)
    print(f"application {app} is deleted")


def show_groups(settings: Settings) -> None:
    """Print the application's status in Serve, and the last report of each rank."""
    from serving.engine.ray import cluster
    from serving.engine.ray import watch as deployment_watch

    app = settings.ray.app_name
    view = deployment_watch.DeploymentWatch(app, SystemClock(), since=0.0).poll()
    print(f"application {app}: {view.phase}")
    for report in deployment_watch.final_reports(view.reports, cluster.gangs(app)):
        error = f": {report.error}" if report.error else ""
        print(
            f"  group {report.gang_id} rank {report.rank}/{report.world_size} "
            f"on {report.node} (process {report.pid}): {report.stage}{error}"
        )


def _wait_room(settings: Settings, progress: Progress) -> None:
    """Wait until the cluster has the resources for all groups.

    Raises:
        PlacementError: Resources are still missing after group.placement_timeout.
    """
    from serving.engine.ray import cluster
    from serving.engine.ray.placement import explain_gap, group_needs, require_room

    needs = group_needs(settings.group, settings.platform)
    deadline = time.monotonic() + settings.group.placement_timeout
    while (gap := explain_gap(cluster.nodes(), needs)) is not None:
        progress.set("groups", f"waiting for resources: {gap}")
        if time.monotonic() >= deadline:
            require_room(cluster.nodes(), needs)
        time.sleep(POLL_SECONDS)


def _wait_running(settings: Settings, watch: "DeploymentWatch", progress: Progress) -> None:
    from serving.engine.ray import watch as deployment_watch
    from serving.engine.ray.placement import group_needs
    from serving.engine.ray.startup_progress import Stage

    group = settings.group
    clock = SystemClock()
    placement = deployment_watch.PlacementWatch(
        settings.ray.app_name,
        group_needs(group, settings.platform),
        group.placement_timeout,
        clock,
    )
    deadline = clock.monotonic() + group.start_timeout
    while True:
        view = watch.poll()
        for report in view.reports:
            part = f"group {report.gang_id} rank {report.rank}"
            done = report.stage is Stage.JOINING
            text = "started" if done else str(report.stage)
            failed = report.stage is Stage.FAILED
            said = f"failed: {report.error}" if failed else f"{text} on {report.node}"
            progress.set(part, said, done=done)
        failure = deployment_watch.failure_of(view)
        if failure is not None:
            raise failure
        if view.phase is deployment_watch.Phase.RUNNING:
            progress.set("groups", f"{group.count} running", done=True)
            return
        gap = placement.check()
        if gap is None:
            progress.drop("groups")
        else:
            progress.set("groups", f"waiting for resources: {gap}")
        if clock.monotonic() >= deadline:
            raise EngineError(f"not running after group.start_timeout ({group.start_timeout:g} s)")
        time.sleep(POLL_SECONDS)
