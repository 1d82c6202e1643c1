"""What the routers say of themselves at this moment: ready groups and parked requests.

A parked request must not wait for a scrape: ``/fleet`` is asked directly.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.snapshot import FleetCounts
from serving.errors import SettingsError
from serving.net import addresses_of
from serving.settings import AutoscalerSettings

_ALL = "dns+"
"""Scheme prefix: every address behind the name is a router."""
_PORTS = {"http": 80, "https": 443}

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class GroupSeen(NamedTuple):
    """A living group as the routers see it."""

    group_id: str
    since: float
    """Seconds since the Unix epoch at which its state began."""
    nodes: frozenset[str]
    """Addresses of the nodes of its ranks."""
    ready: bool


class Routers:
    """The REST side of all routers of the fleet."""

    def __init__(
        self, client: httpx.AsyncClient, settings: AutoscalerSettings, app: str = ""
    ) -> None:
        """Look at the groups of ``app``, a Serve application; empty: at all.

        Others, such as those of another node pool, are scaled by others. Groups that do not say
        what deployed them count.
        """
        self._app = app
        self._client = client
        self._urls = tuple(_fleet_url(url) for url in settings.routers)
        self._timeout = settings.router_timeout
        self._headers = bearer(settings.api_key_file)

    async def counts(self) -> FleetCounts | None:
        """Return ready groups and parked requests, or None if no router answers."""
        pages = await self._pages()
        if not pages:
            return None
        ready = (sum(group["state"] == "ready" for group in self._own(page)) for page in pages)
        return FleetCounts(max(ready), sum(map(_parked, pages)))

    async def groups(self) -> tuple[GroupSeen, ...]:
        """Return the living groups that any router sees, each once.

        Raises:
            ActuatorError: no router answers: that is not the same as no group.
        """
        pages = await self._pages()
        if not pages:
            raise ActuatorError("no router answers: which groups live is not known")
        found: dict[str, GroupSeen] = {}
        for page in pages:
            for group in self._own(page):
                seen = GroupSeen(
                    str(group["group_id"]),
                    float(group["since_unix_seconds"]),
                    frozenset(str(rank["node"]) for rank in group["ranks"]),
                    group["state"] == "ready",
                )
                found.setdefault(seen.group_id, seen)
        return tuple(found.values())

    def _own(self, page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        # Under KubeRay the RayCluster's name stands before the application's.
        names = {"", self._app}
        return [
            group
            for group in page["groups"]
            if not self._app or str(group.get("app", "")).rpartition("/")[2] in names
        ]

    async def _pages(self) -> Sequence[Mapping[str, Any]]:
        targets = [target for urls in map(_targets, self._urls) for target in await urls]
        pages = await asyncio.gather(*(self._page(*target) for target in targets))
        return [page for page in pages if page is not None]

    async def _page(self, url: httpx.URL, name: str | None) -> Mapping[str, Any] | None:
        headers, extensions = dict(self._headers), {}
        if name is not None:
            # Dialled by its address; it has the certificate of the name.
            headers["host"] = name if url.port is None else f"{name}:{url.port}"
            extensions["sni_hostname"] = name
        try:
            answer = await self._client.get(
                url, headers=headers, timeout=self._timeout, extensions=extensions
            )
            answer.raise_for_status()
            page = answer.json()
            _parked(page)  # a page that cannot be read counts as none
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "router does not answer", url=str(url), error=f"{type(error).__name__} {error}"
            )
            return None
        checked: Mapping[str, Any] = page
        return checked


def _fleet_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(f"{text.rstrip('/')}/fleet")
    except httpx.InvalidURL as error:
        raise SettingsError(f"autoscaler.routers: {text!r}: {error}") from error
    scheme = url.scheme.removeprefix(_ALL)
    if scheme not in _PORTS or not url.host:
        raise SettingsError(f"autoscaler.routers: {text!r} is no URL such as http://router:8000")
    return url


async def _targets(url: httpx.URL) -> Sequence[tuple[httpx.URL, str | None]]:
    """Return what to dial for one setting, and the name that the certificate must have."""
    if not url.scheme.startswith(_ALL):
        return [(url, None)]
    scheme = url.scheme.removeprefix(_ALL)
    port = url.port or _PORTS[scheme]
    try:
        found = await addresses_of(url.host, port)
    except OSError as error:
        log.warning("routers cannot be resolved", name=url.host, error=str(error))
        return []
    return [(httpx.URL(f"{scheme}://{address}/fleet"), url.host) for address in sorted(found)]


def bearer(file: str | None) -> dict[str, str]:
    """Return the header with the key or token in ``file``, or none.

    Raises:
        SettingsError: the file cannot be read.
    """
    if file is None:
        return {}
    try:
        return {"authorization": f"Bearer {Path(file).read_text('utf-8').strip()}"}
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error


def _ready(page: Mapping[str, Any]) -> int:
    return sum(group["state"] == "ready" for group in page["groups"])


def _parked(page: Mapping[str, Any]) -> int:
    """Return the requests that wait while no group is ready; those on a rank do not count."""
    if _ready(page):
        return 0
    placed = sum(
        int(rank["inflight_requests"]) for group in page["groups"] for rank in group["ranks"]
    )
    return max(0, int(page["inflight_requests"]) - placed)
