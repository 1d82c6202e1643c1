"""Sends each decision to every router, which shows it in its web console.

Decisions never wait for reports: a router that does not accept a report in time misses it.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog

from serving.autoscaler.decision import Decision
from serving.autoscaler.routers import bearer_header, router_targets
from serving.autoscaler.signals import Observation
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings

PATH = "/console/api/autoscaler"
_UNSENT = 64
"""Maximum number of reports being sent; further ones are dropped."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class DecisionReports:
    """Sends decisions in the background."""

    def __init__(self, client: httpx.AsyncClient, settings: AutoscalerSettings) -> None:
        """Prepare to send reports; ``decision_reports`` creates and closes the client.

        Raises:
            SettingsError: The key file cannot be read.
        """
        self._client = client
        self._settings = settings
        self._headers = bearer_header(settings.api_key_file) | {"content-type": "application/json"}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, decision: Decision, observation: Observation, *, pool: str = "", dry_run: bool = False
    ) -> None:
        """Start sending a decision to all routers.

        Args:
            decision: The decision.
            observation: The observation that the decision is based on.
            pool: Model and pool; empty if there is only one.
            dry_run: Whether the decision is only shown, not executed.
        """
        if len(self._tasks) >= _UNSENT:
            return
        body = json.dumps(report(decision, observation, pool, dry_run=dry_run), allow_nan=False)
        task = asyncio.get_running_loop().create_task(self._send(body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop all reports that have not been sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, body: str) -> None:
        targets = await router_targets(self._settings, PATH)
        await asyncio.gather(*(self._send_to(url, name, body) for url, name in targets))

    async def _send_to(self, url: httpx.URL, name: str | None, body: str) -> None:
        headers, extensions = dict(self._headers), {}
        if name is not None:
            headers["host"] = name if url.port is None else f"{name}:{url.port}"
            extensions["sni_hostname"] = name
        try:
            answer = await self._client.post(
                url,
                content=body,
                headers=headers,
                timeout=self._settings.router_timeout,
                extensions=extensions,
            )
        except httpx.HTTPError as error:
            log.debug("decision not sent", url=str(url), error=repr(error))
        else:
            # 404: this router has no console.
            log.debug("decision sent", url=str(url), status=answer.status_code)


@asynccontextmanager
async def decision_reports(settings: AutoscalerSettings) -> AsyncIterator[DecisionReports]:
    """Send decisions within the block.

    Raises:
        SettingsError: A file cannot be read.
    """
    verify = _trust(settings.ca_file)
    # As in ``app``: the environment's proxies are for destinations outside the cluster.
    async with httpx.AsyncClient(trust_env=False, verify=verify) as client:
        reports = DecisionReports(client, settings)
        try:
            yield reports
        finally:
            await reports.close()


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    try:
        return True if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot load {ca_file}: {error}") from error


def report(
    decision: Decision, observation: Observation, pool: str, *, dry_run: bool
) -> dict[str, Any]:
    """Return a decision in the format of ``serving.console.decisions.ReportedDecision``."""
    return {
        "pool": pool,
        "at": decision.at,
        "current": decision.current,
        "target": decision.target,
        "reason": decision.reason[:1000],
        "ready": None if observation.fleet is None else observation.fleet.ready,
        "blind": decision.blind,
        "dry_run": dry_run,
        "votes": [
            {
                "rule": vote.rule,
                "kind": str(vote.kind),
                "groups": vote.groups,
                "reason": vote.reason[:1000],
            }
            for vote in decision.votes
        ],
        "signals": {str(name): reading.value for name, reading in observation.signals.items()},
    }
