"""Whole groups of a Ray Serve application, over the REST interface of Ray's dashboard.

Ray Serve's external scaler (``POST /api/v1/applications/APP/deployments/DEP/scale``) takes a
number of replicas. A number that is no multiple of the gang is answered 200 and silently not
applied, so only whole groups are ever sent, and what Serve then holds is read back
(deploy/docs/adr/0008-scaling-through-serves-external-scaler.md).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.drains import Drainer
from serving.autoscaler.routers import GroupSeen, bearer
from serving.settings import AutoscalerSettings

DEPLOYMENT = "ranks"
"""As serving.engine.ray.deployment names it; a test compares."""
_COMING = frozenset({"NOT_STARTED", "DEPLOYING"})
_LEAVING = frozenset({"STOPPING", "STOPPED"})
"""States of replicas that do not count towards the number that is asked for."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class GroupSource(Protocol):
    """Says which groups live; ``routers.Routers`` is the real one."""

    async def groups(self) -> Sequence[GroupSeen]:
        """Return the living groups that any router sees.

        Raises:
            ActuatorError: no router answers.
        """
        ...


class RayServeActuator:
    """Scales one application of ours."""

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
        """Scale application ``app``, whose groups have ``ranks`` ranks each."""
        self._client = client
        self._base = f"{settings.dashboard_url.rstrip('/')}/api"
        self._headers = bearer(settings.dashboard_token_file)
        self._timeout = settings.ray_timeout
        self._app = app
        self._ranks = ranks
        self._groups = groups
        self._drains = drains
        self._leaving: set[str] = set()
        """Groups that were drained and are expected to go."""

    async def target(self) -> int:
        """Return the groups that Serve was asked for last."""
        asked = await self._asked()
        await self._restore_survivors(asked)
        return asked

    async def scale(self, groups: int) -> None:
        """Ask for so many groups; the ones that are expected to go are drained first."""
        if groups < 0:
            raise ActuatorError(f"{groups} groups cannot be")
        before = await self._asked()
        leaving = await self._drain(before - groups, keep=groups) if groups < before else ()
        try:
            await self._set(groups)
        except ActuatorError:
            for group in leaving:
                await self._drains.restore(group.group_id)
            raise
        self._leaving.update(group.group_id for group in leaving)

    def notices(self) -> tuple[str, ...]:
        """Return nothing: what is wrong with Ray Serve is an error of the call."""
        return ()

    async def occupied(self) -> frozenset[str]:
        """Return the addresses of all nodes that hold a replica, in whatever state it is.

        Raises:
            ActuatorError: Ray does not answer, or some replica has no node yet: any could get it.
        """
        return occupied_nodes(await self._ask("GET", "/serve/applications/"))

    async def _asked(self) -> int:
        page = await self._ask("GET", "/serve/applications/")
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
                f"Ray Serve is asked for {replicas} ranks, and a group has {self._ranks}: are "
                "group.data_parallel and the deployment the same?"
            )
        return whole

    async def _set(self, groups: int) -> None:
        path = f"/v1/applications/{self._app}/deployments/{DEPLOYMENT}/scale"
        await self._ask("POST", path, {"target_num_replicas": groups * self._ranks})
        now = await self._asked()
        if now != groups:
            raise ActuatorError(f"Ray Serve accepted {groups} groups and stays at {now}")

    async def _drain(self, count: int, keep: int) -> Sequence[GroupSeen]:
        """Empty the groups that Serve will stop: those that are not ready, then the newest.

        Serve prefers gangs that do not run yet, then, node for node, the newest. Where it
        takes another one after all, that one's ranks drain by themselves while they stop, and
        the drained one gets its work back as soon as that is known.
        """
        living = sorted(await self._groups.groups(), key=lambda group: (group.ready, -group.since))
        # Some of those that go may not have joined any router: nothing to drain there.
        count = min(count, max(0, len(living) - keep))
        leaving = [group for group in living[:count] if group.ready]
        for group in leaving:
            finished = await self._drains.drain(group.group_id, "scaled down")
            log.info("drained", group=group.group_id, finished=finished)
        return leaving

    async def _restore_survivors(self, asked: int) -> None:
        if not self._leaving:
            return
        try:
            living = {group.group_id for group in await self._groups.groups()}
        except ActuatorError:
            return  # who survived is seen when a router answers
        survivors = self._leaving & living
        self._leaving = survivors
        if len(living) <= asked:
            # No more will go: whoever is left stays.
            for group_id in sorted(survivors):
                log.info("stays after all", group=group_id)
                await self._drains.restore(group_id)
            self._leaving = set()

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
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
                f"Ray's dashboard at {self._base} does not answer: {type(error).__name__} {error}"
            ) from error
        if answer.is_error:
            said = page.get("error", page) if isinstance(page, dict) else page
            raise ActuatorError(f"Ray Serve answered {answer.status_code}: {said}")
        return page


def occupied_nodes(page: Any) -> frozenset[str]:
    """Return the addresses of the nodes with a replica of any application; from Ray's own page.

    Args:
        page: what ``GET /api/serve/applications/`` answers.

    Raises:
        ActuatorError: a replica that is to come has no node yet, or the page cannot be read.
    """
    found: set[str] = set()
    try:
        for name, app in page["applications"].items():
            if not app["deployments"] and app["status"] in _COMING:
                raise ActuatorError(f"application {name} is being deployed and has no replica yet")
            for deployment in app["deployments"].values():
                found.update(_nodes_of(name, deployment))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ActuatorError(f"Ray Serve does not say where its replicas are: {error!r}") from error
    return frozenset(found)


def _nodes_of(app: str, deployment: Any) -> set[str]:
    replicas = deployment["replicas"]
    staying = [replica for replica in replicas if replica["state"] not in _LEAVING]
    asked = int(deployment["target_num_replicas"])
    # A gang is not listed before it has a place for all of its replicas.
    if len(staying) < asked:
        raise ActuatorError(
            f"application {app}: {asked - len(staying)} of {asked} replicas are to be placed"
        )
    for replica in staying:
        if not replica["node_ip"]:
            raise ActuatorError(
                f"application {app}: replica {replica.get('replica_id', '?')} is "
                f"{replica['state']} and has no node yet"
            )
    return {str(replica["node_ip"]) for replica in replicas if replica["node_ip"]}
