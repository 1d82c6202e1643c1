"""The router's own pages beside vLLM's API: health, metrics, the fleet, one model, our OpenAPI."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from serving.edge.auth.authenticator import identity_var
from serving.edge.auth.permissions import METRICS_TARGETS, Need
from serving.edge.fleet_view import FleetView, metrics_targets, readiness
from serving.edge.gate import Gate
from serving.edge.rest.openapi import describe
from serving.errors import ModelNotFound
from serving.routing.snapshot import FleetSnapshot


@dataclass(frozen=True, slots=True)
class RouterPages:
    """Where the router's own pages read from."""

    fleet: Callable[[], FleetSnapshot]
    registries: tuple[CollectorRegistry, ...]
    """What /metrics shows, in this order; their metric names must not overlap."""
    gate: Gate
    model: str

    def view(self) -> FleetView:
        """Return the fleet as it is now."""
        return FleetView(self.fleet(), self.model, self.gate.inflight, draining=not self.gate.open)


class _Pages:
    """The pages' answers."""

    def __init__(self, app: FastAPI, pages: RouterPages) -> None:
        self._app = app
        self._pages = pages

    async def livez(self) -> PlainTextResponse:
        """Answer while the process runs and its event loop turns."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> JSONResponse:
        """Tell whether a request would be served now; ``?parked=ok``: or may wait for it."""
        draining = not self._pages.gate.open
        content = readiness(self._pages.fleet(), draining=draining)
        if not identity_var.get().may(Need.ADMIN):
            # Groups and why they are not ready are for those who may see /fleet.
            content = {"ready": content["ready"]}
        parked = request.query_params.get("parked") == "ok" and not draining
        return JSONResponse(content, status_code=200 if content["ready"] or parked else 503)

    async def ping(self) -> Response:
        """Answer 200 while a group is ready, else 503; the name that some hosts ask for."""
        ready = readiness(self._pages.fleet(), draining=not self._pages.gate.open)["ready"]
        return Response(status_code=200 if ready else 503)

    async def metrics(self) -> Response:
        """Give every metric of this process as Prometheus text."""
        page = b"".join(generate_latest(registry) for registry in self._pages.registries)
        return Response(page, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def targets(self) -> JSONResponse:
        """List the ranks' own metrics pages for Prometheus' HTTP service discovery."""
        return JSONResponse(metrics_targets(self._pages.fleet()))

    async def fleet(self) -> JSONResponse:
        """Show groups, ranks, load and why things are as they are."""
        return JSONResponse(self._pages.view().to_json())

    async def load(self) -> JSONResponse:
        """Tell how many requests this router has in flight."""
        return JSONResponse({"server_load": self._pages.gate.inflight})

    async def model(self, model_id: str) -> JSONResponse:
        """Describe one model as /v1/models does; ``/v1/models/`` is that list itself.

        Raises:
            ModelNotFound: there is none of that name.
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
        """Describe what this router serves (OpenAPI 3)."""
        return JSONResponse(self._app.openapi())


def add_pages(app: FastAPI, pages: RouterPages) -> None:
    """Add the router's pages to vLLM's app, and HEAD wherever there is GET."""
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
    app.title, app.version = "moe-serving", version("moe-serving")
    describe(app)  # is kept; HEAD would be in it a second time for each page
    for route in app.routes:
        if isinstance(route, APIRoute) and "GET" in route.methods:
            # Probes and proxies ask so; uvicorn leaves the body out.
            route.methods.add("HEAD")
