"""Routes of the console: its files, the session, snapshots, and an operator's actions.

The page is public and contains no data. Calls below /console/api carry the API key in a header.
There are no cookies, so other sites cannot act with a user's permissions.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from serving import __version__
from serving.clock import Clock
from serving.console.assets import INDEX, SECURITY_HEADERS, Asset, assets
from serving.console.decisions import DecisionLog
from serving.console.experts_feed import MAX_GROUPS, ExpertsFeed
from serving.console.fleet_feed import FleetFeed
from serving.console.hub import Parts, SnapshotHub
from serving.console.prices import price_lists
from serving.console.requests_feed import PREFIX, Positions, RequestsFeed, Source, cancel
from serving.console.spending import Spending
from serving.console.stream import SnapshotStream
from serving.console.timeline import Timeline
from serving.edge.auth.authenticator import ALLOW_ALL, Permission, Principal, principal_var
from serving.edge.auth.key_file import Role
from serving.errors import (
    GroupNotFound,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Unsupported,
)
from serving.fleet.models import ModelStatus
from serving.ledger.tariff import Tariff
from serving.routing.snapshot import FleetSnapshot
from serving.settings import ConsoleSettings

_MAX_NAME = 300
_EXPERTS = "experts:"
_MAX_FEEDS = 5
_JSON_HEADERS = {**SECURITY_HEADERS, "cache-control": "no-store"}

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.operator")


class Operator(Protocol):
    """Operations on groups: a ``fleet.operations.FleetOperations``."""

    def cordon(self, group_id: str, reason: str) -> None:
        """Stop routing new requests to a group."""
        ...

    def uncordon(self, group_id: str) -> None:
        """Route requests to a group again."""
        ...

    async def drain(self, group_id: str, timeout: float) -> bool:
        """Cordon a group and wait for its running requests; return whether they finished."""
        ...


@dataclass(frozen=True, slots=True)
class ConsoleSources:
    """What the console reads and acts on."""

    fleet: Callable[[], FleetSnapshot]
    requests: Source
    positions: Positions
    explain_all: Callable[[bool], None]
    """Called with whether any console watches requests."""
    inflight: Callable[[], int]
    operator: Operator
    models: Callable[[], Sequence[ModelStatus]]
    """Returns the state of each served model; the first is the default."""
    tariff: Tariff | None
    """Prices of tokens. None: there is no ledger."""
    spending: Spending | None
    """Usage and budgets. None: there is no ledger."""
    batches: bool
    """Whether the router has files and batches."""
    grpc_port: int
    drain_timeout: float
    """Time for running requests to finish in a drain, seconds."""


class Console:
    """Handlers of the console's routes."""

    def __init__(self, sources: ConsoleSources, settings: ConsoleSettings, clock: Clock) -> None:
        """Create the handlers; ``add_to`` adds them to an app."""
        self._sources = sources
        self._settings = settings
        self._clock = clock
        self.hub = SnapshotHub(
            interval=settings.interval,
            max_subscriptions=settings.max_streams,
            on_readers=lambda hub: sources.explain_all(bool(hub.reading(PREFIX))),
        )
        self._timeline = Timeline(sources.fleet, sources.inflight, clock)
        self._decisions = DecisionLog()
        self._sampling: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes, which are not part of the OpenAPI document."""
        for path, endpoint, method in (
            ("/console", self._redirect, "GET"),
            ("/console/api/session", self._session, "GET"),
            ("/console/api/stream", self._stream, "GET"),
            ("/console/api/spending", self._spending, "GET"),
            ("/console/api/autoscaler", self._decision, "POST"),
            ("/console/api/cancel", self._cancel, "POST"),
            ("/console/api/groups", self._operate, "POST"),
            ("/console/{path:path}", self._asset, "GET"),
        ):
            # A stream has no end, so it has no HEAD.
            heads = method == "GET" and endpoint != self._stream
            methods = [method, "HEAD"] if heads else [method]
            app.add_api_route(path, endpoint, methods=methods, include_in_schema=False)

    def start(self) -> None:
        """Compress the files, so that the first page does not wait, and start to sample."""
        assets()
        self._sampling = asyncio.create_task(self._timeline.run())

    async def stop(self) -> None:
        """End all streams, the drains in the background, and the sampling."""
        self.hub.close()
        tasks = {task for task in (self._sampling, *self._drains) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._sources.spending is not None:
            self._sources.spending.close()

    # -- files --------------------------------------------------------------------------

    async def _redirect(self) -> Response:
        # Relative, so that it also works behind a proxy that adds a path.
        return RedirectResponse("console/", headers=SECURITY_HEADERS)

    async def _asset(self, path: str, request: Request) -> Response:
        found = assets().get(path or INDEX)
        if found is None:
            return JSONResponse({"error": "not found"}, 404, headers=SECURITY_HEADERS)
        return _asset_response(found, request)

    # -- data ---------------------------------------------------------------------------

    async def _session(self) -> Response:
        """Return the key's tenant and permissions, and what the page needs from the router."""
        principal, tariff, models = (
            principal_var.get(),
            self._sources.tariff,
            self._sources.models(),
        )
        prices = {} if tariff is None else price_lists(tariff, models, self._clock.time())
        return JSONResponse(
            {
                "tenant": principal.tenant,
                "key_id": principal.key_id,
                "chat": principal.has(Permission.USER),
                "admin": principal.has(Permission.ADMIN),
                "explain": not principal.roles.isdisjoint({Role.EXPLAIN, Role.ADMIN}),
                "keys_required": principal is not ALLOW_ALL,
                "model": models[0].name,
                "prices": prices,
                "batches": self._sources.batches,
                "version": __version__,
                "ledger": tariff is not None,
                "grpc_port": self._sources.grpc_port,
                "drain_timeout": self._sources.drain_timeout,
                "interval": self._settings.interval,
                "now": self._clock.time(),
            },
            headers=_JSON_HEADERS,
        )

    async def _stream(self, request: Request) -> Response:
        """Stream snapshots of the feeds named in the query: ``?feed=fleet&feed=requests``.

        Raises:
            InvalidRequest: No feed, or an unknown one, is named.
            PermissionDenied: The key does not permit a feed.
            Overloaded: Too many consoles are open, or experts of too many groups are watched.
        """
        names = frozenset(request.query_params.getlist("feed"))
        if not 0 < len(names) <= _MAX_FEEDS:
            raise InvalidRequest(f"name one to {_MAX_FEEDS} feeds: ?feed=fleet")
        principal = principal_var.get()
        feeds = dict(self._feed(name, principal) for name in sorted(names))
        tenant = None if principal.has(Permission.ADMIN) else principal.tenant
        timeout = self._settings.stall_timeout
        return SnapshotStream(self.hub, feeds, tenant=tenant, stall_timeout=timeout)

    def _feed(self, name: str, principal: Principal) -> tuple[str, Callable[[], Parts]]:
        sources = self._sources
        if name == PREFIX:
            _require(principal, Permission.USER)
            tenant = None if principal.has(Permission.ADMIN) else principal.tenant
            key = PREFIX if tenant is None else f"{PREFIX}:{tenant}"
            return key, RequestsFeed(sources.requests, sources.positions, self._clock, tenant)
        _require(principal, Permission.ADMIN)
        if name == "fleet":
            return name, FleetFeed(sources.fleet, sources.models, self._clock)
        if name == "timeline":
            return name, self._timeline
        if name == "autoscaling":
            return name, self._decisions
        group = name.removeprefix(_EXPERTS)
        if group == name or not 0 < len(group) <= _MAX_NAME:
            raise InvalidRequest(f"unknown feed {name[:_MAX_NAME]!r}")
        watched = self.hub.reading(_EXPERTS)
        if name not in watched and len(watched) >= MAX_GROUPS:
            raise Overloaded(f"the experts of {MAX_GROUPS} groups are being watched; try later")
        return name, ExpertsFeed(sources.fleet, group)

    async def _spending(self) -> Response:
        """Return the usage since midnight UTC and the budgets that the key may see.

        Raises:
            Unsupported: The router has no ledger.
            NotReady: The ledger's database does not answer.
        """
        if self._sources.spending is None:
            raise Unsupported("this router has no ledger: set ledger.directory")
        principal = principal_var.get()
        _require(principal, Permission.USER)
        return JSONResponse(await self._sources.spending.today(principal), headers=_JSON_HEADERS)

    async def _decision(self, request: Request) -> Response:
        """Store a decision that the autoscaler reports.

        Raises:
            PermissionDenied: A browser sent it.
            InvalidRequest: It is malformed.
        """
        # Every browser sends this header with a POST, the autoscaler does not.
        if "origin" in request.headers:
            raise PermissionDenied("decisions are accepted from the autoscaler only")
        self._decisions.add(await request.body())
        return JSONResponse({}, headers=_JSON_HEADERS)

    # -- actions ------------------------------------------------------------------------

    async def _cancel(self, request: Request) -> Response:
        """Cancel a request of the key's tenant, or any for admins: ``{"number": …}``."""
        asked = await _checked_body(request, {"number"})
        principal = principal_var.get()
        tenant = None if principal.has(Permission.ADMIN) else principal.tenant
        log.info("operator", operation="cancel", request=asked["number"], tenant=principal.tenant)
        cancel(self._sources.requests, asked["number"], "cancelled in the console", tenant)
        return JSONResponse({}, headers=_JSON_HEADERS)

    async def _operate(self, request: Request) -> Response:
        """Act on a group: ``{"group": …, "action": "cordon" | "uncordon" | "drain"}``.

        The response to a drain is immediate; the fleet's snapshots show its progress.
        """
        asked = await _checked_body(request, {"group", "action"})
        group, action = asked["group"], asked["action"]
        operator, who = self._sources.operator, principal_var.get()
        log.info("operator", operation=action[:16], group=group, tenant=who.tenant)
        if action == "cordon":
            operator.cordon(group, "cordoned in the console")
        elif action == "uncordon":
            operator.uncordon(group)
        elif action == "drain":
            # Cordoned here, so that an unknown group is this request's error.
            operator.cordon(group, "drained in the console")
            task = asyncio.create_task(self._drain(group))
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)
        else:
            raise InvalidRequest("action must be cordon, uncordon or drain")
        return JSONResponse({}, headers=_JSON_HEADERS)

    async def _drain(self, group: str) -> None:
        # The group may leave during the drain.
        with contextlib.suppress(GroupNotFound):
            finished = await self._sources.operator.drain(group, self._sources.drain_timeout)
            log.info("group drained", group=group, finished=finished)


def _asset_response(asset: Asset, request: Request) -> Response:
    headers = {
        **SECURITY_HEADERS,
        "etag": asset.etag,
        # The files change with the router's version only, which the tag identifies.
        "cache-control": "no-cache",
        "vary": "accept-encoding",
    }
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


def _require(principal: Principal, permission: Permission) -> None:
    if not principal.has(permission):
        raise PermissionDenied(
            f"this API key does not permit this operation: {permission.value} required"
        )


async def _checked_body(request: Request, fields: set[str]) -> dict[str, str]:
    """Return the body of an action, an object with exactly these fields, all of them strings.

    Browsers send a cross-origin request with this content type only after a preflight, which fails
    unless router.cors_origins permits the origin; even then, other sites may not act.

    Raises:
        InvalidRequest: The body or its content type is different.
        PermissionDenied: The request comes from another site.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequest("the content type must be application/json")
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise PermissionDenied("actions are accepted from the console's own page only")
    if principal_var.get() is ALLOW_ALL and not _is_address(request.headers.get("host", "")):
        # Without keys, a site whose name resolves to this address could act (DNS rebinding).
        raise PermissionDenied(
            "a router without API keys accepts actions only at an IP address or localhost"
        )
    try:
        body: Any = json.loads(await request.body())
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict) or body.keys() != fields:
        raise InvalidRequest(f"the body must be an object with {', '.join(sorted(fields))}")
    if not all(isinstance(value, str) and 0 < len(value) <= _MAX_NAME for value in body.values()):
        raise InvalidRequest(f"values must be strings of 1 to {_MAX_NAME} characters")
    return body


def _is_address(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
