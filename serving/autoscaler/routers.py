"""Reads groups and parked requests from the routers' ``/fleet`` pages.

The pages are read directly rather than through Prometheus, so that a parked request does not wait
for a scrape.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.signals import FleetCounts
from serving.errors import SettingsError
from serving.net import DNS_SCHEME, addresses_of, dns_name
from serving.settings import AutoscalerSettings

_EVERY_ADDRESS = "dns+"
"""Scheme prefix of a URL whose host name resolves to several routers. ``dns:///name:port`` is
converted to such a URL; a setting can also contain one."""
_PORTS = {"http": 80, "https": 443}

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class ObservedGroup(NamedTuple):
    """A group that at least one router is connected to."""

    group_id: str
    since: float
    """Unix time of the last state change, seconds."""
    nodes: frozenset[str]
    """Addresses of the nodes that the ranks run on."""
    ready: bool


class RouterPages:
    """The ``/fleet`` pages of all routers."""

    def __init__(self, client: httpx.AsyncClient, settings: AutoscalerSettings) -> None:
        """Read the routers in the settings.

        Raises:
            SettingsError: A URL is invalid or the key file cannot be read.
        """
        self._client = client
        self._reading: asyncio.Task[Sequence[Mapping[str, Any]]] | None = None
        scheme = "http" if settings.ca_file is None else "https"
        self._urls = tuple(_fleet_url(url, scheme) for url in settings.routers)
        self._timeout = settings.router_timeout
        self._headers = bearer_header(settings.api_key_file)

    async def read(self) -> Sequence[Mapping[str, Any]]:
        """Return the page of each router that responds; concurrent calls share one reading."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._forget)
        # A caller that is cancelled must not fail the others.
        return await asyncio.shield(self._reading)

    def _forget(self, done: "asyncio.Task[Sequence[Mapping[str, Any]]]") -> None:
        del done
        self._reading = None

    async def _read(self) -> Sequence[Mapping[str, Any]]:
        targets = [target for urls in map(_targets, self._urls) for target in await urls]
        pages = await asyncio.gather(*(self._page(*target) for target in targets))
        return [page for page in pages if page is not None]

    async def _page(self, url: httpx.URL, name: str | None) -> Mapping[str, Any] | None:
        headers, extensions = dict(self._headers), {}
        if name is not None:
            # The connection is to an address, but the certificate is for the name.
            headers["host"] = name if url.port is None else f"{name}:{url.port}"
            extensions["sni_hostname"] = name
        try:
            answer = await self._client.get(
                url, headers=headers, timeout=self._timeout, extensions=extensions
            )
            answer.raise_for_status()
            page = answer.json()
            _parked(page)  # an unreadable page counts as no response
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "router does not answer", url=str(url), error=f"{type(error).__name__} {error}"
            )
            return None
        checked: Mapping[str, Any] = page
        return checked


class RouterReader:
    """Reads the groups of one Ray Serve application from all routers."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: AutoscalerSettings,
        app: str = "",
        *,
        pool: tuple[str, str] | None = None,
        pages: RouterPages | None = None,
    ) -> None:
        """Read the groups of Ray Serve application ``app``, or of all applications if it is empty.

        Groups of other applications, such as those of another node pool, have separate autoscalers.
        Groups without an application name are included.

        Args:
            client: HTTP client.
            settings: The settings group ``autoscaler``.
            app: Name of the application.
            pool: Model and pool of the groups. None means all groups.
            pages: The routers' pages, shared by the readers of several pools; created if omitted.

        Raises:
            SettingsError: A URL is invalid or the key file cannot be read.
        """
        self._app = app
        self._pool = pool
        self._pages = pages or RouterPages(client, settings)

    async def counts(self) -> FleetCounts | None:
        """Return ready groups and parked requests; None if no router responds."""
        pages = await self._pages.read()
        if not pages:
            return None
        ready = (self.ready(page) for page in pages)
        return FleetCounts(max(ready), sum(map(_parked, pages)))

    async def groups(self) -> tuple[ObservedGroup, ...]:
        """Return the groups that any router is connected to, each once.

        Raises:
            ActuatorError: No router responds, so the groups are unknown.
        """
        pages = await self._pages.read()
        if not pages:
            raise ActuatorError("no router responds: the running groups are unknown")
        found: dict[str, ObservedGroup] = {}
        for page in pages:
            for group in self._own(page):
                seen = ObservedGroup(
                    str(group["group_id"]),
                    float(group["since_unix_seconds"]),
                    frozenset(str(rank["node"]) for rank in group["ranks"]),
                    group["state"] == "ready",
                )
                found.setdefault(seen.group_id, seen)
        return tuple(found.values())

    def ready(self, page: Mapping[str, Any]) -> int:
        """Return the number of ready groups on one router's page."""
        return sum(group["state"] == "ready" for group in self._own(page))

    def _own(self, page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        # Under KubeRay, the application's name is prefixed with the RayCluster's.
        names = {"", self._app}
        return [
            group
            for group in page["groups"]
            if (not self._app or str(group.get("app", "")).rpartition("/")[2] in names)
            and (self._pool is None or self._pool == (group.get("model"), group.get("pool")))
        ]


def _fleet_url(text: str, scheme: str) -> httpx.URL:
    """Return the URL of a router's page; ``scheme`` applies to ``dns:///`` addresses."""
    try:
        base = text.rstrip("/")
        if text.startswith(DNS_SCHEME) and (name := dns_name(text)) is not None:
            base = f"{_EVERY_ADDRESS}{scheme}://{name[0]}:{name[1]}"
        url = httpx.URL(f"{base}/fleet")
    except (httpx.InvalidURL, ValueError) as error:
        raise SettingsError(f"autoscaler.routers: {text!r}: {error}") from error
    if url.scheme.removeprefix(_EVERY_ADDRESS) not in _PORTS or not url.host:
        raise SettingsError(f"autoscaler.routers: {text!r} is not a URL such as http://router:8000")
    return url


async def _targets(url: httpx.URL) -> Sequence[tuple[httpx.URL, str | None]]:
    """Return the URLs that a setting resolves to, each with the server name to verify, if any."""
    if not url.scheme.startswith(_EVERY_ADDRESS):
        return [(url, None)]
    scheme = url.scheme.removeprefix(_EVERY_ADDRESS)
    port = url.port or _PORTS[scheme]
    try:
        found = await addresses_of(url.host, port)
    except OSError as error:
        log.warning("cannot resolve the routers' name", name=url.host, error=str(error))
        return []
    return [(httpx.URL(f"{scheme}://{address}/fleet"), url.host) for address in sorted(found)]


async def router_targets(
    settings: AutoscalerSettings, path: str
) -> Sequence[tuple[httpx.URL, str | None]]:
    """Return the URL of a page at every router, each with the server name to verify, if any.

    Args:
        settings: Settings that contain the routers' addresses.
        path: Path of the page; starts with a slash.
    """
    scheme = "http" if settings.ca_file is None else "https"
    pages = [
        page for router in settings.routers for page in await _targets(_fleet_url(router, scheme))
    ]
    return [
        (url.copy_with(path=url.path.removesuffix("/fleet") + path), name) for url, name in pages
    ]


def bearer_header(file: str | None) -> dict[str, str]:
    """Return the authorization header for the key or token in ``file``; empty without a file.

    Raises:
        SettingsError: The file cannot be read.
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
    """Return the number of requests that have not been placed because no group is ready."""
    if _ready(page):
        return 0
    placed = sum(
        int(rank["inflight_requests"]) for group in page["groups"] for rank in group["ranks"]
    )
    return max(0, int(page["inflight_requests"]) - placed)
