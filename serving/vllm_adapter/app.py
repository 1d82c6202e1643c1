"""vLLM's OpenAI app adapted to the fleet: routes kept, parts replaced.

tests/unit/vllm_adapter/test_contract.py lists every part of vLLM and FastAPI that this package
overrides, replaces or removes. If a new vLLM version changes a part, the test fails and names it.
"""

import logging
from argparse import Namespace
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic import api_router
from vllm.entrypoints.anthropic import serving as messages
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.completion import serving as completion
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMError

from serving.errors import ServingError
from serving.vllm_adapter.answer_parser import install_answer_parser
from serving.vllm_adapter.error_response import (
    FAILED,
    content_of,
    error_response,
    reason_of,
    response_of,
)
from serving.vllm_adapter.fail_fast import fail_fast
from serving.vllm_adapter.handlers import install_handlers
from serving.vllm_adapter.stream_bypass import bypass_middleware

TASKS = ("generate",)

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
        # SageMaker's single route for all of /v1; the fields of the body select the API.
        "/invocations",
        "/health",
        "/version",
    }
)
"""Routes of vLLM that the router serves.

All others are removed: routes that control a single engine (LoRA loading, elastic EP, profiling,
sleep), vLLM's metrics and load pages, which would describe the router as an engine, and the
token-in-token-out protocol with its renderers, which vLLM answers with 403 unless it is enabled."""

_FIXED_ARGS = {
    # Report cached prompt tokens in usage.
    "enable_prompt_tokens_details": True,
    # The ranks publish engine statistics.
    "disable_log_stats": True,
    # FastAPI's pages load scripts from a public server and would list removed routes.
    "disable_fastapi_docs": True,
}
"""Arguments of vLLM's server with a fixed value in every router."""

_LOGGING_MODULES = (chat, completion, messages, api_router)
"""Modules of vLLM that log exceptions of requests."""


async def build_vllm_app(
    client: EngineClient, args: Namespace, *, generating: frozenset[str]
) -> FastAPI:
    """Build vLLM's app and adapt it to a router.

    Args:
        client: engine client that represents the fleet.
        args: arguments of vLLM's server (``serving.engine.arguments.router_args``).
        generating: paths whose streamed responses bypass the app's middleware.

    Raises:
        RuntimeError: this version of vLLM lacks a route in ``KEPT_ROUTES``.
        TypeError: this version of vLLM uses other handler classes.
    """
    # vLLM's server shares this object between its arguments and the engine's configuration, which
    # stores the name of the reasoning parser in it.
    structured_outputs = client.vllm_config.structured_outputs_config
    args = Namespace(
        **{**vars(args), **_FIXED_ARGS, "structured_outputs_config": structured_outputs}
    )
    app: FastAPI = build_app(args, TASKS, client.model_config)
    _remove_routes(app)
    _remove_middleware(app)
    _handle_errors(app)
    await init_app_state(client, app.state, args, TASKS)
    install_handlers(app.state)
    suppress_client_error_logs()
    install_answer_parser(app.state, compact_json=structured_outputs.disable_any_whitespace)
    bypass_middleware(app, generating)
    fail_fast(app)
    return app


def _remove_routes(app: FastAPI) -> None:
    app.router.routes[:] = [route for route in app.router.routes if _path(route) in KEPT_ROUTES]
    missing = KEPT_ROUTES - {_path(route) for route in app.router.routes}
    if missing:
        raise RuntimeError(
            f"vLLM's OpenAI app has no {', '.join(sorted(missing))}; this version is not supported"
        )


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))


def _remove_middleware(app: FastAPI) -> None:
    """Remove vLLM's middleware: HTTP metrics, elastic-EP switch and SageMaker hooks.

    It adds cost to every request and is useless in a router. API keys and CORS are handled before
    the app.
    """
    app.user_middleware.clear()
    # SageMaker's bootstrap has built the stack; the first request rebuilds it.
    app.middleware_stack = None


def _handle_errors(app: FastAPI) -> None:
    app.exception_handler(ServingError)(_error_answer)
    # Errors of FleetClient are also VLLMErrors, and Starlette finds that class first.
    app.exception_handler(VLLMError)(_vllm_error_answer)
    # Replaces vLLM's handlers for these, which do not recognize tokenizer errors.
    app.exception_handler(TypeError)(_error_answer)
    app.exception_handler(UnicodeEncodeError)(_error_answer)
    app.exception_handler(Exception)(_error_answer)
    app.exception_handler(HTTPException)(_http_error_answer)


async def _error_answer(request: Request, error: Exception) -> JSONResponse:
    # Starlette re-raises unknown exceptions after the response; the middleware logs them.
    response = response_of(error)
    setattr(request.state, FAILED, reason_of(response.error))
    return JSONResponse(content_of(response), status_code=response.error.code)


async def _vllm_error_answer(request: Request, error: Exception) -> Response:
    if isinstance(error, ServingError):
        return await _error_answer(request, error)
    assert isinstance(error, VLLMError)
    answer: Response = await vllm_error_handler(request, error)
    return answer


async def _http_error_answer(_: Request, error: Exception) -> Response:
    # Raised by Starlette: unknown route, wrong method, unreadable body.
    assert isinstance(error, HTTPException)
    response = error_response(
        _detail(error), status=error.status_code, reason=f"HTTP_{error.status_code}"
    )
    return JSONResponse(content_of(response), status_code=error.status_code, headers=error.headers)


def _detail(error: HTTPException) -> str:
    """Return the error text, with the cause if FastAPI could not read the body."""
    cause = error.__cause__
    if isinstance(cause, RecursionError):
        return "the body is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not valid {cause.encoding}: {cause.reason} at byte {cause.start}"
    if isinstance(cause, ValueError):
        return f"the body cannot be read as JSON: {cause}"
    return str(error.detail)


class ClientErrorFilter(logging.Filter):
    """Drops vLLM's tracebacks of exceptions that result in a status below 500.

    vLLM logs every exception that ends a stream with a traceback. Client errors are reported in the
    response and in the request's log line; logging tracebacks would let clients flood the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Exception):
            return True
        status: int = response_of(error).error.code
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR


_FILTER = ClientErrorFilter()


def suppress_client_error_logs() -> None:
    """Install ``ClientErrorFilter`` on vLLM's loggers. Idempotent."""
    for module in _LOGGING_MODULES:
        logging.getLogger(module.__name__).addFilter(_FILTER)
