"""Derive the record of OpenAI's API, used to compare answers, from its OpenAPI document.

    git clone https://github.com/openai/openai-openapi
    python tests/contract/derive_openai.py openai-openapi/openapi.json COMMIT

writes ``openai.json.gz`` next to this file: the operations that this router serves, and of each
schema that they refer to only the parts that the checker reads. Texts and examples are omitted.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

OPERATIONS = {
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/responses": ("post",),
    "/responses/{response_id}": ("get",),
    "/responses/{response_id}/cancel": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
}
_STREAMS = {"/chat/completions": "CreateChatCompletionStreamResponse"}
"""Schemas of stream chunks, which the document mentions only in its texts."""
_ROOTS = ("ErrorResponse", *_STREAMS.values())
_KEPT = ("type", "enum", "const", "required", "nullable", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf")
_REFERENCE = "#/components/schemas/"
RECORD = Path(__file__).parent / "openai.json.gz"


def reduced(schema: Any) -> Any:
    """Return a schema without its texts."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"].removeprefix(_REFERENCE)}
    kept = {key: reduced(schema[key]) for key in _KEPT if key in schema}
    for key in _LISTS:
        if key in schema:
            kept[key] = [reduced(item) for item in schema[key]]
    if "properties" in schema:
        kept["properties"] = {name: reduced(item) for name, item in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = reduced(schema["items"])
    return kept


def references(schema: Any) -> set[str]:
    """Return the names that a reduced schema refers to."""
    if isinstance(schema, list):
        return {name for item in schema for name in references(item)}
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return own | {name for item in schema.values() for name in references(item)}


def record_of(document: dict[str, Any], commit: str) -> dict[str, Any]:
    """Return the record of a document."""
    operations: dict[str, Any] = {}
    for path, methods in OPERATIONS.items():
        for method in methods:
            operation = document["paths"][path][method]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            answer = operation["responses"]["200"]["content"]
            stream = answer.get("text/event-stream", {}).get("schema")
            if path in _STREAMS:
                stream = {"$ref": _REFERENCE + _STREAMS[path]}
            operations[f"{method.upper()} {path}"] = {
                "request": reduced(body.get("schema")),
                "answer": reduced(answer["application/json"]["schema"]),
                "event": reduced(stream),
            }
    schemas: dict[str, Any] = {}
    wanted = references(list(operations.values())) | set(_ROOTS)
    while wanted:
        name = wanted.pop()
        schemas[name] = reduced(document["components"]["schemas"][name])
        wanted |= references(schemas[name]) - schemas.keys()
    return {
        "document": "github.com/openai/openai-openapi, openapi.json",
        "version": document["info"]["version"],
        "commit": commit,
        "operations": operations,
        "schemas": dict(sorted(schemas.items())),
    }


if __name__ == "__main__":
    source, commit = sys.argv[1:]
    record = record_of(json.loads(Path(source).read_text()), commit)
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    RECORD.write_bytes(gzip.compress(text.encode(), mtime=0))
