"""Leader election with a Lease: one of several autoscalers makes the decisions.

The lease is acquired and renewed by compare-and-swap: a JSON patch with the version that was read.
The clocks of other machines are not used: as in client-go, a lease has expired when it has not
changed for its duration according to the local clock. A leader that cannot renew within two thirds
of the duration stops making decisions.

The object can exist without a spec: the chart renders it that way, so that it is removed with the
release. If it does not exist, it is created.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Conflict, NotFound
from serving.clock import Clock
from serving.settings import KubernetesSettings
from serving.telemetry import autoscaler_metrics as metrics

LEASES_GROUP = "coordination.k8s.io/v1"
LEASES = "leases"
_RENEWALS = 7.5
"""Number of renewals per lease duration: one every 2 s for 15 s, as in client-go."""
_POLLS = 15
"""Number of attempts of a waiting candidate per lease duration: one per second for 15 s. A released
or expired lease is acquired within this interval."""
_SHORTEST = 0.02
"""Minimum interval between attempts, seconds."""
_CALLS = 5
"""Number of API timeouts per lease duration, so that one late response does not cost the
leadership."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class LeaseElection:
    """One candidate of the election."""

    def __init__(
        self, api: KubernetesApi, settings: KubernetesSettings, identity: str, clock: Clock
    ) -> None:
        """Compete for the configured lease as ``identity``, which must be unique."""
        # No retries: the next attempt follows soon, and starts with a read.
        self._api = api.bounded(min(settings.api_timeout, settings.lease_seconds / _CALLS), 1)
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._seen: tuple[object, object] | None = None
        self._seen_at = 0.0
        self._expires_at = 0.0
        """Time at which another holder's lease expires unless it changes, monotonic seconds."""
        self._renewed_at: float | None = None
        self._claimed = False
        """Whether a claim was sent since the last release, even if its response was lost."""
        self._problem = ""

    @property
    def leading(self) -> bool:
        """Whether this process may make decisions now."""
        if self._renewed_at is None:
            return False
        since = self._clock.monotonic() - self._renewed_at
        return since < self._settings.lease_seconds * 2 / 3

    async def acquire_or_renew(self) -> None:
        """Acquire a free or expired lease, or renew a held one. A failure is logged, not raised."""
        begun = self._clock.monotonic()
        try:
            won = await self._try(begun)
        except Conflict:
            won = False
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("leader").inc()
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("lease update failed", error=str(error))
            metrics.AUTOSCALER_LEADER.set(self.leading)
            return
        self._problem = ""
        if won != self.leading:
            log.info(
                "became the leader" if won else "no longer the leader", identity=self._identity
            )
        self._renewed_at = begun if won else None
        metrics.AUTOSCALER_LEADER.set(won)

    async def run(self, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Acquire and renew until cancelled."""
        while True:
            await self.acquire_or_renew()
            await pause(self._rest())

    def _rest(self) -> float:
        """Return the seconds until the next attempt, or until the holder's lease expires."""
        if self.leading:
            return self._settings.lease_seconds / _RENEWALS
        left = self._expires_at - self._clock.monotonic()
        poll = self._settings.lease_seconds / _POLLS
        return max(_SHORTEST, min(poll, left) if left > 0 else poll)

    async def release(self) -> None:
        """Release the lease, so that another candidate takes over without waiting for expiry."""
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
            return  # another candidate holds the lease
        except ActuatorError as error:
            log.warning("lease not released", error=str(error))

    async def _try(self, now: float) -> bool:
        name = self._settings.lease
        try:
            lease = await self._api.get(LEASES_GROUP, LEASES, name)
        except NotFound:
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
        self._expires_at = self._seen_at + duration
        if holder and not mine and now < self._expires_at:
            return False
        transitions = int(spec.get("leaseTransitions") or 0)
        new = self._spec(transitions=transitions + (not mine), taken=not mine)
        # With the version, the patch fails with a conflict (409) if the lease has been written
        # since.
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
