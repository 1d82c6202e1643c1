"""Routes of the router itself: health, metrics, the fleet, models, and the OpenAPI document."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from serving.edge.adapter_pages import AdapterAdmin, add_adapter_pages
from serving.edge.auth.authenticator import METRICS_TARGETS, Permission, principal_var
from serving.edge.batch_pages import BatchAccess, add_batch_pages
from serving.edge.fleet_view import FleetView, metrics_targets, readiness
from serving.edge.gate import DrainGate
from serving.edge.rest.openapi import ApiDocument
from serving.edge.usage_pages import UsageReader, add_usage_pages
from serving.errors import ModelNotFound
from serving.fleet.models import ModelStatus
from serving.h2grpc.turns import TaskTurns
from serving.routing.snapshot import FleetSnapshot


@dataclass(frozen=True, slots=True)
class RouterPages:
    """Data sources of the pages."""

    fleet: Callable[[], FleetSnapshot]
    registries: tuple[CollectorRegistry, ...]
    """Registries exported on /metrics, in this order; metric names must not overlap."""
    gate: DrainGate
    model: str
    """Name of the first model."""
    models: Callable[[], tuple[ModelStatus, ...]] = tuple
    """State of all models."""
    usage: UsageReader = field(default_factory=lambda: UsageReader(None))
    """Queries the ledger."""
    batches: BatchAccess | None = None
    """Files and batches. None if they are not configured."""
    turns: TaskTurns = field(default_factory=TaskTurns)
    """Turns of all requests with long steps. Pages take part so that many clients that load a page
    at the same time do not delay streams for the sum of its rendering times."""
    adapters: AdapterAdmin | None = None
    """Loads and unloads LoRA adapters. None: the routes do not exist."""

    async def view(self) -> FleetView:
        """Return the current state of the fleet, in a turn that lasts until the next await."""
        await self.turns.turn()
        return FleetView(
            self.fleet(),
            self.model,
            self.gate.inflight,
            draining=not self.gate.open,
            models=self.models(),
        )


class _Pages:
    """Handlers of the pages."""

    def __init__(self, app: FastAPI, pages: RouterPages) -> None:
        self._app = app
        self._pages = pages

    async def livez(self) -> PlainTextResponse:
        """Return 200 while the event loop runs."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> JSONResponse:
        """Return 200 if a request would be served now, otherwise 503.

        With ``?parked=ok``, also return 200 if it would wait for a group to become ready.
        """
        draining = not self._pages.gate.open
        content = readiness(self._pages.fleet(), draining=draining)
        if not principal_var.get().has(Permission.ADMIN):
            # Groups and reasons require the same permission as /fleet.
            content = {"ready": content["ready"]}
        parked = request.query_params.get("parked") == "ok" and not draining
        return JSONResponse(content, status_code=200 if content["ready"] or parked else 503)

    async def ping(self) -> Response:
        """Return 200 while a group is ready, otherwise 503. Some platforms probe this path."""
        ready = readiness(self._pages.fleet(), draining=not self._pages.gate.open)["ready"]
        return Response(status_code=200 if ready else 503)

    async def metrics(self) -> Response:
        """Return all metrics of this process in Prometheus' text format."""
        parts = []
        for registry in self._pages.registries:
            await self._pages.turns.turn()
            parts.append(generate_latest(registry))
        return Response(b"".join(parts), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def targets(self) -> JSONResponse:
        """Return the ranks' metrics addresses for Prometheus' HTTP service discovery."""
        await self._pages.turns.turn()
        return JSONResponse(metrics_targets(self._pages.fleet()))

    async def fleet(self) -> JSONResponse:
        """Return groups, ranks, load, and the reasons for their states."""
        return JSONResponse((await self._pages.view()).to_json())

    async def load(self) -> JSONResponse:
        """Return the number of requests in flight in this router."""
        return JSONResponse({"server_load": self._pages.gate.inflight})

    async def model(self, model_id: str) -> JSONResponse:
        """Describe one model as /v1/models does; ``/v1/models/`` returns the list.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        models = await self._app.state.openai_serving_models.show_available_models()
        model_id = model_id.rstrip("/")
        if not model_id:
            return JSONResponse(models.model_dump())
        for card in models.data:
            if card.id == model_id:
                return JSONResponse(card.model_dump())
        known = ", ".join(card.id for card in models.data)
        raise ModelNotFound(f"the model {model_id!r} does not exist; this router serves {known}")

    async def openapi(self) -> JSONResponse:
        """Return the OpenAPI 3 document of this router."""
        # Runs in a thread, because the first call generates the document.
        return JSONResponse(await asyncio.to_thread(self._app.openapi))


def add_pages(app: FastAPI, pages: RouterPages) -> None:
    """Add the router's pages to vLLM's app, and HEAD to all GET routes."""
    own = _Pages(app, pages)
    for path, endpoint in (
        ("/livez", own.livez),
        ("/readyz", own.readyz),
        ("/ping", own.ping),
        ("/metrics", own.metrics),
        (METRICS_TARGETS, own.targets),
        ("/fleet", own.fleet),
        ("/load", own.load),
        ("/v1/models/{model_id:path}", own.model),
        ("/openapi.json", own.openapi),
    ):
        app.add_api_route(path, endpoint, methods=["GET"])
    add_usage_pages(app, pages.usage)
    add_batch_pages(app, pages.batches)
    if pages.adapters is not None:
        add_adapter_pages(app, pages.adapters)
    app.title, app.version = "moe-serving", version("moe-serving")
    # Copies the routes before HEAD is added, to keep HEAD out of the document.
    app.openapi = ApiDocument(app)  # type: ignore[method-assign]
    for route in app.routes:
        if isinstance(route, APIRoute) and "GET" in route.methods:
            # Probes and proxies use HEAD; uvicorn omits the body.
            route.methods.add("HEAD")
