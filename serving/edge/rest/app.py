"""Builds the REST app: vLLM's OpenAI app on the fleet, the router's routes, and middleware."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving.clock import Clock
from serving.edge.auth.authenticator import Authenticator
from serving.edge.pages import RouterPages, add_pages
from serving.edge.request_headers import BUDGET_WARNING, COST, EXPLAIN, REQUEST_ID
from serving.edge.rest.middleware import GENERATING, EdgeMiddleware
from serving.edge.usage_recorder import UsageRecorder
from serving.edge.value_bounds import MAX_VALUES
from serving.h2grpc.budget import MAX_PENDING_BYTES
from serving.requests.client import FleetClient
from serving.telemetry.tracing import Tracing
from serving.vllm_adapter.app import build_vllm_app
from serving.vllm_adapter.model_dispatch import (
    Handlers,
    ModelStates,
    dispatch_models,
    list_models,
    name_models,
)

_EXPOSED_HEADERS = (REQUEST_ID, "request-id", "retry-after", EXPLAIN, COST, BUDGET_WARNING)
"""Response headers that cross-origin pages may read."""


@dataclass(frozen=True, slots=True)
class RestApp:
    """The app to serve, and vLLM's app inside it, whose handlers the gRPC edge uses."""

    asgi: ASGIApp
    inner: FastAPI
    first: Handlers = None
    """Handlers of the first model."""


async def build_rest_app(
    client: FleetClient,
    args: Namespace,
    pages: RouterPages,
    *,
    max_body_bytes: int,
    max_body_values: int = MAX_VALUES,
    max_pending_bytes: int = MAX_PENDING_BYTES,
    keepalive_interval: float,
    clock: Clock,
    authenticator: Authenticator | None = None,
    open_metrics: bool = False,
    tracing: Tracing | None = None,
    cors_origins: Sequence[str] = (),
    usage: UsageRecorder | None = None,
    models: ModelStates | None = None,
    several: bool = False,
    check_load: Callable[[], None] | None = None,
    max_file_bytes: int | None = None,
) -> RestApp:
    """Build vLLM's app on ``client`` with the router's pages, behind the middleware.

    Args:
        client: vLLM engine client that represents the fleet.
        args: Arguments of vLLM's server (``serving.engine.arguments.router_args``).
        pages: Data sources of the router's pages.
        max_body_bytes: Maximum size of a request body, bytes.
        max_body_values: Maximum number of JSON values in a request body.
        max_pending_bytes: Maximum total size of incomplete request bodies, bytes.
        keepalive_interval: Idle time after which a comment is sent in a stream, seconds.
        clock: The router's clock.
        authenticator: Validates API keys. If None, no key is required.
        open_metrics: Whether /metrics is public.
        tracing: Starts the traces of requests. None means no tracing.
        cors_origins: Origins whose pages may call the router; "*" permits any.
        usage: Records requests in the ledger. None means no ledger.
        models: States of all models; ``client`` serves the first one. If None, there is only one
            model.
        several: Whether there are several models.
        check_load: Rejects a request before its body is read. None means ``client.check_load``.
        max_file_bytes: Maximum size of an uploaded file, bytes. If None, batches are disabled.
    """
    app = await build_vllm_app(client, args, generating=GENERATING, turns=client.turns)
    first: Handlers = app.state
    if models is not None and several:
        first = dispatch_models(app.state, models)
    if models is not None:
        list_models(app.state, models)
        name_models(first, models.listed())
    add_pages(app, pages)
    asgi = EdgeMiddleware(
        app,
        gate=pages.gate,
        model=pages.model,
        max_body_bytes=max_body_bytes,
        max_body_values=max_body_values,
        max_pending_bytes=max_pending_bytes,
        keepalive_interval=keepalive_interval,
        clock=clock,
        authenticator=authenticator,
        open_metrics=open_metrics,
        tracing=tracing,
        check_load=check_load or client.check_load,
        turns=client.turns,
        usage=usage,
        max_file_bytes=max_file_bytes,
    )
    # CORS is outermost so that browsers can also read errors of the other middleware.
    return RestApp(
        CORSMiddleware(
            asgi,
            allow_origins=list(cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            # A browser asks for it if a public page calls a router in a private network.
            allow_private_network=True,
            expose_headers=list(_EXPOSED_HEADERS),
        ),
        app,
        first,
    )
