"""Waits for the groups, and shows the stage of each rank until all are ready or one has failed.

Combines two sources: the ranks' reports, from the start of the process until the engine runs, and
the router's /fleet, from joining until the group is ready.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from serving.cli.local.progress import Progress
from serving.client.credentials import NO_ACCESS, Access
from serving.client.rest import RestClient
from serving.clock import Clock
from serving.engine.ray.placement import group_needs
from serving.engine.ray.startup_progress import Stage
from serving.engine.ray.watch import (
    DeploymentView,
    DeploymentWatch,
    PlacementWatch,
    failure_of,
)
from serving.errors import EngineError, NotReady
from serving.settings import Settings

POLL_SECONDS = 0.25
_FLEET_TIMEOUT = 2.0
_HTTP_OK = 200

Fleet = Mapping[str, Any]
"""The content of /fleet."""


def ask_fleet(rest_url: str, access: Access = NO_ACCESS) -> Fleet | None:
    """Return the router's /fleet, or ``None`` if it does not answer."""
    try:
        status, body = RestClient(rest_url, access).get_json("/fleet", _FLEET_TIMEOUT)
    except NotReady:
        return None
    return body if status == _HTTP_OK and isinstance(body, Mapping) else None


class Readiness:
    """Waits for all groups of one pool."""

    def __init__(
        self,
        settings: Settings,
        rest_url: str,
        progress: Progress,
        clock: Clock,
        access: Access = NO_ACCESS,
    ) -> None:
        """Prepare to wait; earlier reports of ranks are ignored. Ray must be connected.

        Args:
            settings: Settings of the pool.
            rest_url: Base URL of the router.
            progress: Shows the stages.
            clock: Source of time.
            access: Credentials for the router.
        """
        group = settings.group
        self._group = group
        self._model = settings.model.name
        self._rest_url = rest_url
        self._access = access
        self._progress = progress
        self._clock = clock
        self._watch = DeploymentWatch(settings.ray.app_name, clock)
        self._placement = PlacementWatch(
            settings.ray.app_name,
            group_needs(group, settings.platform),
            group.placement_timeout,
            clock,
        )

    def wait(self, require_alive: Callable[[], None]) -> None:
        """Wait until ``group.count`` groups are ready.

        Args:
            require_alive: Raises if the router or Ray has ended.

        Raises:
            SettingsError: A rank rejected its settings.
            PlacementError: A group could not be placed within group.placement_timeout.
            EngineError: A rank failed to start, or group.start_timeout has passed.
        """
        group = self._group
        deadline = self._clock.monotonic() + group.start_timeout
        while True:
            require_alive()
            fleet = ask_fleet(self._rest_url, self._access)
            view = self._watch.poll()
            show(self._progress, view, fleet, self._rest_url)
            failure = failure_of(view)
            if failure is not None:
                raise failure
            gap = self._placement.check()
            if gap is None:
                self._progress.drop("groups")
            else:
                self._progress.set("groups", f"waiting for resources: {gap}")
            pool = None if fleet is None else of_pool(fleet, self._model, group.pool)
            if pool is not None and ready_groups(pool) >= group.count:
                self._progress.set("groups", f"{group.count} ready", done=True)
                return
            if self._clock.monotonic() >= deadline:
                raise EngineError(
                    f"not ready after group.start_timeout ({group.start_timeout:g} s): "
                    + why_not_ready(view, fleet)
                )
            time.sleep(POLL_SECONDS)


def show(progress: Progress, view: DeploymentView, fleet: Fleet | None, rest_url: str) -> None:
    """Show the state of the router and of each rank in the progress display."""
    if fleet is not None:
        progress.set("router", f"up at {rest_url}", done=True)
    joined = {
        (group["group_id"], rank["rank"]): group["state"]
        for group in (fleet or {}).get("groups", ())
        for rank in group["ranks"]
    }
    for report in view.reports:
        part = f"group {report.gang_id} rank {report.rank}"
        state = joined.get((report.gang_id, report.rank))
        if report.stage is Stage.FAILED:
            progress.set(part, f"failed: {report.error}")
        elif state is None:
            progress.set(part, f"{report.stage} on {report.node}")
        elif state == "ready":
            progress.set(part, "ready", done=True)
        else:
            progress.set(part, f"joined, group {state}")


def of_pool(fleet: Fleet, model: str, pool: str) -> Fleet:
    """Return /fleet with the groups of one pool."""
    groups = [
        group
        for group in fleet["groups"]
        if (group.get("model", model), group.get("pool", pool)) == (model, pool)
    ]
    return {**fleet, "groups": groups}


def ready_groups(fleet: Fleet) -> int:
    """Return how many groups are ready."""
    return sum(group["state"] == "ready" for group in fleet["groups"])


def why_not_ready(view: DeploymentView, fleet: Fleet | None) -> str:
    """Return a description of the parts that are not ready yet."""
    if fleet is None:
        return "the router does not respond"
    groups = [f"group {item['group_id']} is {item['state']}" for item in fleet["groups"]]
    waiting = [f"rank {item.rank} of {item.gang_id} is {item.stage}" for item in view.reports]
    return "; ".join(groups or waiting) or "no rank has started"


class GroupNews:
    """Reports changes in the groups' states."""

    def __init__(self) -> None:
        """Start without states, so the first call of ``look`` reports no changes."""
        self._states: dict[str, str] | None = None

    def look(self, fleet: Fleet) -> list[str]:
        """Return one line for each group that has changed since the last call."""
        states = {str(group["group_id"]): str(group["state"]) for group in fleet["groups"]}
        reasons = {str(group["group_id"]): str(group["reason"]) for group in fleet["groups"]}
        news = []
        before, self._states = self._states, states
        if before is not None:
            for name in sorted(states.keys() | before.keys()):
                state, reason = states.get(name, "gone"), reasons.get(name, "")
                if state != before.get(name):
                    news.append(f"group {name}: {state}" + (f" ({reason})" if reason else ""))
        return news
