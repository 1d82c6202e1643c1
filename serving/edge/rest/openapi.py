"""The OpenAPI document of the router's routes, with the responses they actually send.

FastAPI generates it from vLLM's routes, which declare few response schemas, and declare status 422
for errors that are sent as 400. Requests are described by vLLM's models.

Generating it takes a second of CPU time. A router therefore generates it in a thread at the first
request for it, not at start-up.
"""

import copy
import threading
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensResponse,
    AnthropicErrorResponse,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponse,
    CompletionStreamResponse,
)
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard, ModelList
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeResponse, TokenizeResponse

from serving.vllm_adapter.anthropic_errors import is_messages

_REFERENCE = "#/components/schemas/{model}"
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"

_ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionResponse,
    "/v1/chat/completions/batch": ChatCompletionResponse,
    "/v1/completions": CompletionResponse,
    "/v1/responses": ResponsesResponse,
    "/v1/responses/{response_id}": ResponsesResponse,
    "/v1/responses/{response_id}/cancel": ResponsesResponse,
    "/v1/messages": AnthropicMessagesResponse,
    "/v1/messages/count_tokens": AnthropicCountTokensResponse,
    "/v1/models": ModelList,
    "/v1/models/{model_id}": ModelCard,
    "/tokenize": TokenizeResponse,
    "/detokenize": DetokenizeResponse,
}
_CHUNKS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionStreamResponse,
    "/v1/completions": CompletionStreamResponse,
}
"""Schema of an event's data, by route. /v1/responses and /v1/messages have several event types and
are not included."""
_STREAMS = (*_CHUNKS, "/v1/responses", "/v1/messages", "/invocations")
_TEXTS = ("/livez", "/metrics")
_EMPTY = ("/health", "/ping")

_ERRORS = {
    "400": "The request is malformed, or a value is out of range",
    "401": "Missing or invalid credentials",
    "402": "The budget of the tenant or key is used up; it renews at renews_at",
    "403": "The credentials do not permit this operation",
    "404": "The model or response does not exist",
    "413": "The body exceeds router.max_body_bytes",
    "415": "The content-encoding of the body is not supported",
    "429": "Overloaded or over quota; retry after the time in retry-after",
    "500": "The router or an engine failed",
    "501": "Not supported by the model or this build",
    "503": "No group is ready; retry after the time in retry-after",
    "504": "The request's deadline was exceeded",
}
_OURS = {
    "reason": {"type": "string", "description": "Error reason, see deploy/docs/errors.md"},
    "retry_after": {"type": "number", "description": "Time to wait before a retry, seconds"},
    "renews_at": {"type": "string", "description": "Renewal of a used-up budget, RFC 3339"},
}
"""Fields that the router adds to error bodies."""
_UNUSED = ("HTTPValidationError", "ValidationError")


class ApiDocument:
    """The OpenAPI document of an app's current routes, generated on the first call."""

    def __init__(self, app: FastAPI) -> None:
        """Copy the routes; later changes to the app or its routes have no effect."""
        routes = []
        for route in map(copy.copy, app.routes):
            if isinstance(route, APIRoute):
                route.methods = set(route.methods)
            routes.append(route)
        self._app = copy.copy(app)
        self._app.router = copy.copy(app.router)
        self._app.router.routes = routes
        self._generating = threading.Lock()
        self._document: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        """Return the document; takes up to a second, so do not call it on a router's event loop."""
        with self._generating:
            if self._document is None:
                self._document = describe(self._app)
            return self._document


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the app's routes; the app caches it."""
    document: dict[str, Any] = app.openapi()
    schemas = document["components"]["schemas"]
    models = {*_ANSWERS.values(), *_CHUNKS.values(), ErrorResponse, AnthropicErrorResponse}
    # Validation schemas, because fields with a default may be absent in a response.
    names, made = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda each: each.__name__)],
        ref_template=_REFERENCE,
    )
    for name, schema in made["$defs"].items():
        schemas.setdefault(name, schema)
    for unused in _UNUSED:
        schemas.pop(unused, None)
    for kind in ("ErrorInfo", "AnthropicError"):
        schemas[kind]["properties"].update(_OURS)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(
                path, lambda model: names[(model, "validation")], works=method == "post"
            )
    return document


def _responses(path: str, schema_of: Any, *, works: bool) -> dict[str, Any]:
    """Return the responses of a path.

    Args:
        path: Path in the document.
        schema_of: Returns the schema of a model.
        works: Whether the path accepts work requests, which have more possible errors.
    """
    answer: dict[str, Any] = {"description": "The response"}
    if path in _TEXTS:
        answer["content"] = {_TEXT: {"schema": {"type": "string"}}}
    elif path not in _EMPTY:
        model = _ANSWERS.get(path)
        answer["content"] = {_JSON: {"schema": {} if model is None else schema_of(model)}}
    if path in _STREAMS:
        chunk = _CHUNKS.get(path)
        schema = {"type": "string"} if chunk is None else schema_of(chunk)
        answer["content"][_EVENTS] = {"schema": schema}
    error = schema_of(AnthropicErrorResponse if is_messages(path) else ErrorResponse)
    statuses = _ERRORS if works else [status for status in ("401", "403", "404") if "/v1" in path]
    failures = {
        status: {"description": _ERRORS[status], "content": {_JSON: {"schema": error}}}
        for status in statuses
    }
    return {"200": answer, **failures}
