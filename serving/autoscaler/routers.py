"""What the routers say of themselves at this moment: ready groups and parked requests.

A parked request must not wait for a scrape: ``/fleet`` is asked directly.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

from serving.autoscaler.snapshot import FleetCounts
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings

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

    def __init__(self, client: httpx.AsyncClient, settings: AutoscalerSettings) -> None:
        self._client = client
        self._urls = tuple(f"{url.rstrip('/')}/fleet" for url in settings.routers)
        self._timeout = settings.router_timeout
        self._headers = bearer(settings.api_key_file)

    async def counts(self) -> FleetCounts | None:
        """Return ready groups and parked requests, or None if no router answers."""
        pages = await self._pages()
        if not pages:
            return None
        return FleetCounts(max(map(_ready, pages)), sum(map(_parked, pages)))

    async def groups(self) -> tuple[GroupSeen, ...]:
        """Return the living groups that any router sees, each once."""
        found: dict[str, GroupSeen] = {}
        for page in await self._pages():
            for group in page["groups"]:
                seen = GroupSeen(
                    str(group["group_id"]),
                    float(group["since_unix_seconds"]),
                    frozenset(str(rank["node"]) for rank in group["ranks"]),
                    group["state"] == "ready",
                )
                found.setdefault(seen.group_id, seen)
        return tuple(found.values())

    async def _pages(self) -> Sequence[Mapping[str, Any]]:
        pages = await asyncio.gather(*map(self._page, self._urls))
        return [page for page in pages if page is not None]

    async def _page(self, url: str) -> Mapping[str, Any] | None:
        try:
            answer = await self._client.get(url, headers=self._headers, timeout=self._timeout)
            answer.raise_for_status()
            page = answer.json()
            _parked(page)  # a page that cannot be read counts as none
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            log.warning("router does not answer", url=url, error=f"{type(error).__name__} {error}")
            return None
        checked: Mapping[str, Any] = page
        return checked


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
