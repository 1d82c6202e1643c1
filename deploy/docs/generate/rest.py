"""The reference of the REST API, from the OpenAPI document that a router serves."""

import asyncio
from typing import Any

import httpx

from deploy.docs.generate.markdown import prose, table
from serving.edge.auth.authenticator import route_permission

_HEAD = """\
# REST API

Every route of a router, as its `GET /openapi.json` describes it; that document also has the schema
of each body. Wherever there is GET, there is HEAD.
[rest.md](../rest.md) lists the differences from the published APIs, [errors.md](../errors.md) the
errors, [security.md](../security.md) the permissions.

This page is generated from that document.
"""
_DESCRIPTIONS = {
    "/detokenize": "Convert token ids to text.",
    "/invocations": "Chat or text completion, chosen by the fields of the body (SageMaker's name).",
    "/tokenize": "Convert text, or messages with the chat template, to token ids.",
    "/v1/chat/completions": "Chat completion (OpenAI).",
    "/v1/chat/completions/batch": "Several chat completions in one response.",
    "/v1/completions": "Text completion (OpenAI).",
    "/v1/messages": "Message (Anthropic).",
    "/v1/messages/count_tokens": "Number of prompt tokens of a message (Anthropic).",
    "/v1/models": "List the served models.",
    "/v1/responses": "Response (OpenAI).",
    "/v1/responses/{response_id}": "Always 404: responses are not stored.",
    "/v1/responses/{response_id}/cancel": "Always 404: responses are not stored.",
    "/version": "Version of vLLM.",
}
"""Descriptions of vLLM's routes, because vLLM's own descriptions are only function names."""
Row = tuple[str, str, str, str, str]
_TIMEOUT = 300.0
"""Timeout of a request, seconds; long enough for a busy machine."""
_METHODS = ("get", "post", "put", "patch", "delete")


def page(document: dict[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    inference: list[Row] = []
    own: list[Row] = []
    for path, operations in sorted(document["paths"].items()):
        for method in _METHODS:
            if method in operations:
                row = _row(path, method, operations[method])
                (inference if method == "post" or path.startswith("/v1") else own).append(row)
    header = ("route", "description", "request", "response", "needs")
    return (
        f"{_HEAD}\n## Inference and models\n\n{table(header, inference)}"
        f"\n## Health, metrics and state\n\n{table(header, own)}"
    )


async def document() -> dict[str, Any]:
    """Return the OpenAPI document of a router that has no ranks."""
    from serving.router.app import Router
    from serving.settings import EngineSettings, RouterSettings, Settings

    settings = Settings(
        router=RouterSettings(rest_port=0, grpc_port=0, join_port=0),
        engine=EngineSettings(kind="fake", max_model_len=512),
    )
    router = await Router.start(settings)
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
            answer = await client.get(f"{router.addresses.rest}/openapi.json")
            found: dict[str, Any] = answer.raise_for_status().json()
            return found
    finally:
        await router.stop()


def generate() -> str:
    """Start a router without ranks and return the page for it."""
    return page(asyncio.run(document()))


def _row(path: str, method: str, operation: dict[str, Any]) -> Row:
    text = operation.get("description") or operation["summary"]
    text = _DESCRIPTIONS.get(path) or text.partition("\n\n")[0]
    request = operation.get("requestBody", {}).get("content", {})
    answer = operation["responses"]["200"].get("content", {})
    return (
        f"`{method.upper()} {path}`",
        prose(text).rstrip(".") + ".",
        _models(request),
        _models(answer) or "no body",
        route_permission(path.replace("{", "").replace("}", "")).value,
    )


def _models(content: dict[str, Any]) -> str:
    """Return the names of a body's schemas, or the media types of unnamed ones."""
    found = []
    for media, item in content.items():
        schema = item.get("schema", {})
        names = [
            each["$ref"].rpartition("/")[2]
            for each in (schema, *schema.get("anyOf", ()))
            if "$ref" in each
        ]
        shown = " or ".join(f"`{name}`" for name in names) or f"`{media}`"
        found.append(f"events of {shown}" if names and media == "text/event-stream" else shown)
    return ", ".join(found)
