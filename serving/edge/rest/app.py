"""The REST edge: vLLM's complete OpenAI app on the fleet, and the router's own few routes."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMError

from serving.clock import Clock
from serving.edge.auth.rest import Door
from serving.edge.callers import EXPLAIN
from serving.edge.pages import RouterPages, add_pages
from serving.edge.request_context import REQUEST_ID
from serving.edge.rest.json_bounds import MOST_VALUES
from serving.edge.rest.middleware import GENERATING, EdgeMiddleware
from serving.edge.rest.response import FAILED
from serving.errors import ServingError
from serving.telemetry.tracing import NO_TRACING, Tracing
from serving.vllm_adapter.answer_parser import install
from serving.vllm_adapter.client_error_logs import quiet_client_errors
from serving.vllm_adapter.error_response import content_of, error_response, reason_of, response_of
from serving.vllm_adapter.fail_fast import fail_fast
from serving.vllm_adapter.handlers import adopt
from serving.vllm_adapter.stream_bypass import shorten_streams

TASKS = ("generate",)

# Of what vLLM mounts, what serves text. Left out: what steers one engine (LoRA loading,
# elastic EP, profiling, sleep), vLLM's own metrics and load pages (they would describe this
# process as an engine), what other models are for (/score, /pooling, /rerank, /v1/audio, which
# vLLM mounts for them alone), and vLLM's own token-in-token-out protocol with its renderers, which
# vLLM itself answers with 403 where it is not turned on.
KEPT_ROUTES = frozenset(
    {
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        # SageMaker's name for all of /v1: what a body is for follows from its fields.
        "/invocations",
        "/health",
        "/version",
    }
)

# Server arguments that a router decides: usage says how many prompt tokens were cached, engine
# statistics are the ranks' business, and vLLM's pages about its API (whose scripts come from a
# public server) would show routes that are not here.
_FIXED_ARGS = {
    "enable_prompt_tokens_details": True,
    "disable_log_stats": True,
    "disable_fastapi_docs": True,
}

_EXPOSED_HEADERS = (REQUEST_ID, "request-id", "retry-after", EXPLAIN)
"""What a page of another origin may read of an answer's headers."""


@dataclass(frozen=True, slots=True)
class RestApp:
    """The app to serve, and vLLM's app inside it, whose state the gRPC edge shares."""

    asgi: ASGIApp
    inner: FastAPI


async def build_rest_app(
    client: EngineClient,
    args: Namespace,
    pages: RouterPages,
    *,
    max_body_bytes: int,
    max_body_values: int = MOST_VALUES,
    keepalive_interval: float,
    clock: Clock,
    door: Door | None = None,
    tracing: Tracing = NO_TRACING,
    cors_origins: Sequence[str] = (),
) -> RestApp:
    """Build vLLM's app on ``client`` and the router's pages, behind our middleware.

    Args:
        client: the fleet as an engine.
        args: vLLM's own server arguments (``serving.engine.arguments.router_args``).
        pages: what /readyz, /metrics and /fleet show.
        max_body_bytes: largest request body.
        max_body_values: values in it at most.
        keepalive_interval: seconds of silence after which a streamed answer gets a comment.
        clock: the router's clock; deadlines are on it.
        door: asks for keys; without it nobody is asked.
        tracing: begins the requests' traces.
        cors_origins: origins whose pages may call the router ("*": any).
    """
    # vLLM's server shares this object between arguments and engine configuration, and the
    # latter writes the name of the reasoning parser into it.
    shared = {"structured_outputs_config": client.vllm_config.structured_outputs_config}
    args = Namespace(**{**vars(args), **_FIXED_ARGS, **shared})
    app: FastAPI = build_app(args, TASKS, client.model_config)
    _keep_text_serving(app)
    app.exception_handler(ServingError)(_error_answer)
    # What FleetClient raises is one of vLLM's errors too, and that class comes first.
    app.exception_handler(VLLMError)(_vllm_error_answer)
    # vLLM has a handler for these; ours knows what tokenizers mean by them.
    app.exception_handler(TypeError)(_error_answer)
    app.exception_handler(UnicodeEncodeError)(_error_answer)
    app.exception_handler(Exception)(_error_answer)
    app.exception_handler(HTTPException)(_http_error_answer)
    await init_app_state(client, app.state, args, TASKS)
    adopt(app.state)
    quiet_client_errors()
    install(app.state, compact_json=shared["structured_outputs_config"].disable_any_whitespace)
    shorten_streams(app, GENERATING)
    fail_fast(app)
    add_pages(app, pages)
    asgi = EdgeMiddleware(
        app,
        gate=pages.gate,
        model=pages.model,
        max_body_bytes=max_body_bytes,
        max_body_values=max_body_values,
        keepalive_interval=keepalive_interval,
        clock=clock,
        door=door,
        tracing=tracing,
        admit=client.check_admission,
    )
    # Outermost, so that a page can read errors of the middleware too.
    return RestApp(
        CORSMiddleware(
            asgi,
            allow_origins=list(cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=list(_EXPOSED_HEADERS),
        ),
        app,
    )


def _keep_text_serving(app: FastAPI) -> None:
    """Drop the routes and middleware that make no sense in a router.

    Raises:
        RuntimeError: this vLLM does not mount what we serve.
    """
    app.router.routes[:] = [route for route in app.router.routes if _path(route) in KEPT_ROUTES]
    missing = KEPT_ROUTES - {_path(route) for route in app.router.routes}
    if missing:
        raise RuntimeError(
            f"vLLM's OpenAI app has no {', '.join(sorted(missing))}; this version is not supported"
        )
    # vLLM's HTTP metrics, the elastic-EP switch and SageMaker's hooks cost every request and have
    # no use here; keys are asked for, and other origins admitted, in front of the app.
    app.user_middleware.clear()
    # SageMaker's bootstrap has built the stack; it is built again with the first request.
    app.middleware_stack = None


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))


async def _error_answer(request: Request, error: Exception) -> JSONResponse:
    # After an unknown exception's answer Starlette raises it again; the middleware logs it.
    response = response_of(error)
    setattr(request.state, FAILED, reason_of(response.error))
    return JSONResponse(content_of(response), status_code=response.error.code)


async def _http_error_answer(_: Request, error: Exception) -> Response:
    # Starlette's own: no such route, wrong method, a body that cannot be read.
    assert isinstance(error, HTTPException)
    response = error_response(
        _detail(error), status=error.status_code, reason=f"HTTP_{error.status_code}"
    )
    return JSONResponse(content_of(response), status_code=error.status_code, headers=error.headers)


def _detail(error: HTTPException) -> str:
    """Say what is wrong with a body of which FastAPI only says that it cannot be read."""
    cause = error.__cause__
    if isinstance(cause, RecursionError):
        return "the body is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not valid {cause.encoding}: {cause.reason} at byte {cause.start}"
    if isinstance(cause, ValueError):
        return f"the body cannot be read as JSON: {cause}"
    return str(error.detail)


async def _vllm_error_answer(request: Request, error: Exception) -> Response:
    if isinstance(error, ServingError):
        return await _error_answer(request, error)
    assert isinstance(error, VLLMError)
    answer: Response = await vllm_error_handler(request, error)
    return answer
