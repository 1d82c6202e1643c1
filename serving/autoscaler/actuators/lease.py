"""Leader election by a Lease: of several autoscalers one decides.

Takes and renews by compare and swap: a JSON patch that carries the version that was read. Clocks of
other machines do not matter: a lease is dead when it has not changed for its duration, as seen from
here (the way of client-go). A leader that cannot renew in two thirds of it stops deciding.

The object may be there without a spec, as a chart renders it so that it goes with the release;
where there is none it is created.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Conflict, NotThere
from serving.clock import Clock
from serving.settings import KubernetesSettings
from serving.telemetry import metrics

LEASES_GROUP = "coordination.k8s.io/v1"
LEASES = "leases"
_RENEWALS = 7.5
"""In one duration, as client-go has it: every 2 s of 15."""
_LOOKS = 15
"""Of one who waits, in one duration: every second of 15. A lease that is given back is taken within
that, a dead one within that of its end."""
_SHORTEST = 0.02
"""Seconds between two tries at least."""
_ANSWERS = 5
"""Answers that may be waited for in one duration: one that is late must not cost the lead."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class LeaseElection:
    """One candidate."""

    def __init__(
        self, api: KubernetesApi, settings: KubernetesSettings, identity: str, clock: Clock
    ) -> None:
        """Run for the settings' lease as ``identity``, which no other candidate may have."""
        # One try each: the next one comes soon, and reads first.
        self._api = api.bounded(min(settings.api_timeout, settings.lease_seconds / _ANSWERS), 1)
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._seen: tuple[object, object] | None = None
        self._seen_at = 0.0
        self._dead_at = 0.0
        """When the lease that another one holds is dead if it does not change; on our clock."""
        self._renewed_at: float | None = None
        self._claimed = False
        """Whether a claim was sent since the last release; its answer may have been lost."""
        self._trouble = ""

    @property
    def leading(self) -> bool:
        """Whether this process may decide now."""
        if self._renewed_at is None:
            return False
        since = self._clock.monotonic() - self._renewed_at
        return since < self._settings.lease_seconds * 2 / 3

    async def try_once(self) -> None:
        """Take the lease if it is free or dead, or renew it. Never raises for a failed try."""
        begun = self._clock.monotonic()
        try:
            won = await self._try(begun)
        except Conflict:
            won = False
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("leader").inc()
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("lease", error=str(error))
            metrics.AUTOSCALER_LEADER.set(self.leading)
            return
        self._trouble = ""
        if won != self.leading:
            log.info("leader" if won else "not the leader", identity=self._identity)
        self._renewed_at = begun if won else None
        metrics.AUTOSCALER_LEADER.set(won)

    async def run(self, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Try for ever."""
        while True:
            await self.try_once()
            await pause(self._rest())

    def _rest(self) -> float:
        """Return the seconds until the next try: no later than another's lease is dead."""
        if self.leading:
            return self._settings.lease_seconds / _RENEWALS
        left = self._dead_at - self._clock.monotonic()
        look = self._settings.lease_seconds / _LOOKS
        return max(_SHORTEST, min(look, left) if left > 0 else look)

    async def release(self) -> None:
        """Let another one decide at once; if that fails, after the lease's duration."""
        if not self._claimed:
            return
        self._claimed, self._renewed_at = False, None
        metrics.AUTOSCALER_LEADER.set(0)
        name = self._settings.lease
        patch = [
            {"op": "test", "path": "/spec/holderIdentity", "value": self._identity},
            {"op": "add", "path": "/spec/holderIdentity", "value": ""},
        ]
        try:
            await self._api.patch(LEASES_GROUP, LEASES, name, patch)
        except Conflict:
            return  # another one has it, or nobody
        except ActuatorError as error:
            log.warning("lease not released", error=str(error))

    async def _try(self, now: float) -> bool:
        name = self._settings.lease
        try:
            lease = await self._api.get(LEASES_GROUP, LEASES, name)
        except NotThere:
            body = {
                "apiVersion": LEASES_GROUP,
                "kind": "Lease",
                "metadata": {"name": name},
                "spec": self._spec(transitions=0, taken=True),
            }
            self._claimed = True
            await self._api.create(LEASES_GROUP, LEASES, body)
            return True
        spec: dict[str, Any] = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        seen = (holder, spec.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        mine = holder == self._identity
        duration = float(spec.get("leaseDurationSeconds") or self._settings.lease_seconds)
        self._dead_at = self._seen_at + duration
        if holder and not mine and now < self._dead_at:
            return False
        transitions = int(spec.get("leaseTransitions") or 0)
        new = self._spec(transitions=transitions + (not mine), taken=not mine)
        # The version makes it a conflict (409) if anybody wrote since.
        version = lease["metadata"]["resourceVersion"]
        patch = [{"op": "add", "path": "/metadata/resourceVersion", "value": version}]
        if isinstance(lease.get("spec"), dict):
            patch += [{"op": "add", "path": f"/spec/{key}", "value": new[key]} for key in new]
        else:
            patch += [{"op": "add", "path": "/spec", "value": new}]
        self._claimed = True
        await self._api.patch(LEASES_GROUP, LEASES, name, patch)
        return True

    def _spec(self, *, transitions: int, taken: bool) -> dict[str, Any]:
        at = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._settings.lease_seconds)),
            "renewTime": at,
            "leaseTransitions": transitions,
        }
        return spec | {"acquireTime": at} if taken else spec
