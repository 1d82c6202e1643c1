"""vLLM's OpenAI app adapted to the fleet: keeps some routes and replaces some parts.

tests/unit/vllm_adapter/test_contract.py lists every part of vLLM and FastAPI that this package
overrides, replaces or removes. If a new vLLM version changes a part, the test fails and names it.
"""

import logging
from argparse import Namespace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic import api_router
from vllm.entrypoints.anthropic import serving as messages
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.completion import serving as completion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMError

from serving.errors import ServingError
from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.answer_parser import install_answer_parser
from serving.vllm_adapter.error_response import (
    FAILED,
    content_of,
    error_response,
    reason_of,
    response_of,
)
from serving.vllm_adapter.handlers import (
    ChatBatchHandler,
    ChatHandler,
    CompletionHandler,
)
from serving.vllm_adapter.messages_handler import MessagesHandler
from serving.vllm_adapter.rendering import (
    parse_long_chats_in_slices,
    tokenize_short_texts_at_once,
)
from serving.vllm_adapter.responses_handler import ResponsesHandler, ResponsesRenderer
from serving.vllm_adapter.routes import (
    bypass_middleware,
    cancel_with_clients,
    fail_fast,
    remove_routes,
    send_long_answers_in_parts,
    undecorate_invocations,
)
from serving.vllm_adapter.tokenization_handler import TokenizationHandler

TASKS = ("generate",)

_FIXED_ARGS = {
    # Report cached prompt tokens in usage.
    "enable_prompt_tokens_details": True,
    # The ranks publish engine statistics.
    "disable_log_stats": True,
    # FastAPI's pages load scripts from a public server and would list removed routes.
    "disable_fastapi_docs": True,
}
"""Arguments of vLLM's server with a fixed value in every router."""

_HANDLERS: dict[str, type[Any]] = {
    "openai_serving_chat": ChatHandler,
    "openai_serving_chat_batch": ChatBatchHandler,
    "openai_serving_completion": CompletionHandler,
    "openai_serving_responses": ResponsesHandler,
    "anthropic_serving_messages": MessagesHandler,
    "serving_tokenization": TokenizationHandler,
    "online_renderer": ResponsesRenderer,
}

_LOGGING_MODULES = (chat, completion, messages, api_router)
"""Modules of vLLM that log exceptions of requests."""


async def build_vllm_app(
    client: EngineClient, args: Namespace, *, generating: frozenset[str], turns: TaskTurns
) -> FastAPI:
    """Build vLLM's app and adapt it to a router.

    Args:
        client: Engine client that represents the fleet.
        args: Arguments of vLLM's server (``serving.engine.arguments.router_args``).
        generating: Paths whose streamed responses bypass the app's middleware.
        turns: Shared by all requests with long steps.

    Raises:
        RuntimeError: This version of vLLM lacks a route in ``KEPT_ROUTES``.
        TypeError: This version of vLLM uses other handler classes.
    """
    app: FastAPI = build_app(_with_fixed(args, client), TASKS, client.model_config)
    remove_routes(app)
    undecorate_invocations(app)
    _remove_middleware(app)
    _handle_errors(app)
    api_router.translate_error_response = _messages_error
    await build_model_state(client, app.state, args, turns)
    suppress_client_error_logs()
    cancel_with_clients(app)
    bypass_middleware(app, generating)
    send_long_answers_in_parts(app, turns)
    fail_fast(app)
    return app


async def build_model_state(
    client: EngineClient, state: State, args: Namespace, turns: TaskTurns
) -> None:
    """Build the handlers of one model, and adapt them to a router.

    Args:
        client: Engine client that represents the model's groups.
        state: Receives the handlers: the app's state, or the state of an additional model.
        args: Arguments of vLLM's server (``serving.engine.arguments.router_args``).
        turns: Shared by all requests with long steps.

    Raises:
        TypeError: This version of vLLM uses other handler classes.
    """
    await init_app_state(client, state, _with_fixed(args, client), TASKS)
    tokenize_short_texts_at_once(client.renderer)
    parse_long_chats_in_slices(client.renderer, turns)
    install_handlers(state)
    structured_outputs = client.vllm_config.structured_outputs_config
    install_answer_parser(state, compact_json=structured_outputs.disable_any_whitespace)


def _with_fixed(args: Namespace, client: EngineClient) -> Namespace:
    # vLLM's server shares this object between its arguments and the engine's configuration, which
    # stores the name of the reasoning parser in it.
    structured_outputs = client.vllm_config.structured_outputs_config
    return Namespace(
        **{**vars(args), **_FIXED_ARGS, "structured_outputs_config": structured_outputs}
    )


def _remove_middleware(app: FastAPI) -> None:
    """Remove vLLM's middleware: HTTP metrics, elastic-EP switch and SageMaker hooks.

    It adds cost to every request, and a router does not need it. API keys and CORS are handled
    before the app.
    """
    app.user_middleware.clear()
    # SageMaker's bootstrap has built the stack; the first request rebuilds it.
    app.middleware_stack = None


def install_handlers(state: State) -> None:
    """Set the class of the handlers in vLLM's app state to the subclasses of this package.

    vLLM has no replaceable factory for its handler objects. Its modules are not modified.

    Args:
        state: vLLM's app state after ``init_app_state``.

    Raises:
        TypeError: A handler has a class that this package does not extend.
    """
    for name, handler in _HANDLERS.items():
        serving = getattr(state, name)
        if type(serving) not in handler.__bases__:
            raise TypeError(
                f"vLLM's app state has a {type(serving).__name__} as {name}, which "
                f"{handler.__name__} does not extend; this vLLM version is not supported"
            )
        serving.__class__ = handler


def _handle_errors(app: FastAPI) -> None:
    app.exception_handler(ServingError)(_error_answer)
    # Errors of FleetClient are also VLLMErrors, and Starlette finds that class first.
    app.exception_handler(VLLMError)(_vllm_error_answer)
    # These replace vLLM's handlers, which do not recognize tokenizer errors.
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


def _messages_error(response: ErrorResponse) -> JSONResponse:
    """Replace vLLM's function, which drops ``reason``, ``retry_after`` and ``renews_at``.

    Errors of /v1/messages are converted to Anthropic's format later, at a point that all responses
    pass (anthropic_errors).
    """
    return JSONResponse(content_of(response), status_code=response.error.code)


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
        return "the JSON body is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not valid {cause.encoding}: {cause.reason} at byte {cause.start}"
    if isinstance(cause, ValueError):
        return f"the body is not valid JSON: {cause}"
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
