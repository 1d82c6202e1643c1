"""Scales the groups of a Ray Serve application through the REST API of Ray's dashboard.

Ray Serve's external scaler (``POST /api/v1/applications/APP/deployments/DEP/scale``) accepts a
number of replicas. It returns 200 for a number that is not a multiple of the gang size, but ignores
it. Therefore only multiples are sent, and the resulting number is read back
(deploy/docs/adr/0008-scaling-through-serves-external-scaler.md).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.drains import Drainer
from serving.autoscaler.routers import ObservedGroup, bearer_header
from serving.settings import AutoscalerSettings

DEPLOYMENT = "ranks"
"""Deployment name, the same as in serving.engine.ray.deployment (checked by a test)."""
_COMING = frozenset({"NOT_STARTED", "DEPLOYING"})
_LEAVING = frozenset({"STOPPING", "STOPPED"})
"""Replica states that do not count towards the requested number."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class GroupSource(Protocol):
    """Source of the running groups; implemented by ``routers.RouterReader``."""

    async def groups(self) -> Sequence[ObservedGroup]:
        """Return the groups that any router is connected to.

        Raises:
            ActuatorError: No router responds.
        """
        ...


class RayServeActuator:
    """Scales one Ray Serve application."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: AutoscalerSettings,
        *,
        app: str,
        ranks: int,
        groups: GroupSource,
        drains: Drainer,
    ) -> None:
        """Scale application ``app``.

        Args:
            client: HTTP client.
            settings: The settings group ``autoscaler``.
            app: Name of the application.
            ranks: Number of ranks (replicas) per group.
            groups: Source of the running groups.
            drains: Drains groups before they are removed.
        """
        self._client = client
        self._base = f"{settings.dashboard_url.rstrip('/')}/api"
        self._headers = bearer_header(settings.dashboard_token_file)
        self._timeout = settings.ray_timeout
        self._app = app
        self._ranks = ranks
        self._groups = groups
        self._drains = drains
        self._leaving: set[str] = set()
        """Drained groups that Ray Serve is expected to stop."""

    async def target(self) -> int:
        """Return the number of groups last requested from Ray Serve."""
        requested = await self._requested()
        await self._restore_survivors(requested)
        return requested

    async def scale(self, groups: int) -> None:
        """Request ``groups`` groups; drain the groups that are expected to be stopped first."""
        if groups < 0:
            raise ActuatorError(f"invalid number of groups: {groups}")
        before = await self._requested()
        leaving = await self._drain(before - groups, keep=groups) if groups < before else ()
        try:
            await self._set(groups)
        except ActuatorError:
            for group in leaving:
                await self._drains.restore(group.group_id)
            raise
        self._leaving.update(group.group_id for group in leaving)

    def notices(self) -> tuple[str, ...]:
        """Return no notices: problems of Ray Serve are raised by the calls."""
        return ()

    async def occupied(self) -> frozenset[str]:
        """Return the addresses of all nodes that have a replica in any state.

        Raises:
            ActuatorError: Ray does not respond, or a replica has no node yet.
        """
        return occupied_nodes(await self._call("GET", "/serve/applications/"))

    async def _requested(self) -> int:
        page = await self._call("GET", "/serve/applications/")
        try:
            deployment = page["applications"][self._app]["deployments"][DEPLOYMENT]
            replicas = int(deployment["target_num_replicas"])
        except (KeyError, TypeError, ValueError) as error:
            raise ActuatorError(
                f"Ray Serve has no application {self._app} with deployment {DEPLOYMENT}: deploy "
                "the groups first (moe-serving group deploy)"
            ) from error
        whole, rest = divmod(replicas, self._ranks)
        if rest:
            raise ActuatorError(
                f"Ray Serve's target is {replicas} ranks, not a multiple of {self._ranks} per "
                "group: group.data_parallel must match the deployment"
            )
        return whole

    async def _set(self, groups: int) -> None:
        path = f"/v1/applications/{self._app}/deployments/{DEPLOYMENT}/scale"
        await self._call("POST", path, {"target_num_replicas": groups * self._ranks})
        now = await self._requested()
        if now != groups:
            raise ActuatorError(
                f"Ray Serve accepted {groups} groups, but its target is still {now}"
            )

    async def _drain(self, count: int, keep: int) -> Sequence[ObservedGroup]:
        """Drain the groups that Ray Serve will stop: those that are not ready, then the newest.

        Ray Serve prefers gangs that are not running, then the newest on each node. If it stops
        another group, the ranks of that group drain while they stop, and the group drained here is
        restored as soon as the routers report which groups remain.
        """
        running = sorted(await self._groups.groups(), key=lambda group: (group.ready, -group.since))
        # Groups that have not joined a router need no drain.
        count = min(count, max(0, len(running) - keep))
        leaving = [group for group in running[:count] if group.ready]
        for group in leaving:
            finished = await self._drains.drain(group.group_id, "scaled down")
            log.info("drained", group=group.group_id, finished=finished)
        return leaving

    async def _restore_survivors(self, requested: int) -> None:
        if not self._leaving:
            return
        try:
            running = {group.group_id for group in await self._groups.groups()}
        except ActuatorError:
            return  # decided once a router responds
        survivors = self._leaving & running
        self._leaving = survivors
        if len(running) <= requested:
            # Ray Serve stops no further groups, so the remaining ones stay.
            for group_id in sorted(survivors):
                log.info("group kept: it is no longer to be removed", group=group_id)
                await self._drains.restore(group_id)
            self._leaving = set()

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = await self._client.request(
                method,
                f"{self._base}{path}",
                json=body,
                headers=self._headers,
                timeout=self._timeout,
            )
            page = answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError) as error:
            raise ActuatorError(
                f"Ray's dashboard at {self._base} does not respond: {type(error).__name__} {error}"
            ) from error
        if answer.is_error:
            message = page.get("error", page) if isinstance(page, dict) else page
            raise ActuatorError(f"Ray Serve returned {answer.status_code}: {message}")
        return page


def occupied_nodes(page: Any) -> frozenset[str]:
    """Return the addresses of the nodes with a replica of any application.

    Args:
        page: Response of ``GET /api/serve/applications/``.

    Raises:
        ActuatorError: A pending replica has no node yet, or the response cannot be parsed.
    """
    found: set[str] = set()
    try:
        for name, app in page["applications"].items():
            if not app["deployments"] and app["status"] in _COMING:
                raise ActuatorError(f"application {name} is being deployed and has no replica yet")
            for deployment in app["deployments"].values():
                found.update(_nodes_of(name, deployment))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ActuatorError(
            f"cannot read the nodes of the replicas from Ray Serve: {error!r}"
        ) from error
    return frozenset(found)


def _nodes_of(app: str, deployment: Any) -> set[str]:
    replicas = deployment["replicas"]
    staying = [replica for replica in replicas if replica["state"] not in _LEAVING]
    target = int(deployment["target_num_replicas"])
    # A gang is listed only once all of its replicas are placed.
    if len(staying) < target:
        raise ActuatorError(
            f"application {app}: {target - len(staying)} of {target} replicas are not placed yet"
        )
    for replica in staying:
        if not replica["node_ip"]:
            raise ActuatorError(
                f"application {app}: replica {replica.get('replica_id', '?')} is "
                f"{replica['state']} and has no node yet"
            )
    return {str(replica["node_ip"]) for replica in replicas if replica["node_ip"]}
