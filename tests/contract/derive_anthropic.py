"""Derive the record of Anthropic's messages API from the types of its Python SDK.

Anthropic publishes no OpenAPI document; the types of its SDKs are generated from one.

    python -m venv sdk && sdk/bin/pip install anthropic
    sdk/bin/python tests/contract/derive_anthropic.py

writes ``anthropic.json.gz`` next to this file, in the form of ``openai.json.gz``.
"""

import gzip
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anthropic import types  # type: ignore[import-not-found,unused-ignore]  not in .venv
from derive_openai import reduced
from pydantic import TypeAdapter

_REQUEST = types.message_create_params.MessageCreateParamsStreaming

OPERATIONS = {
    "POST /v1/messages": (_REQUEST, types.Message, types.RawMessageStreamEvent),
    "POST /v1/messages/count_tokens": (
        types.MessageCountTokensParams,
        types.MessageTokensCount,
        None,
    ),
}
RECORD = Path(__file__).parent / "anthropic.json.gz"


def main() -> None:
    """Write the record."""
    schemas: dict[str, Any] = {}

    def noted(kind: Any) -> Any:
        if kind is None:
            return None
        schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
        for name, each in schema.pop("$defs", {}).items():
            schemas[name] = reduced(each)
        return reduced(schema)

    names = ("request", "answer", "event")
    operations = {
        operation: dict(zip(names, map(noted, kinds), strict=True))
        for operation, kinds in OPERATIONS.items()
    }
    noted(types.ErrorResponse)
    schemas["ErrorResponse"] = noted(types.ErrorResponse)
    record = {
        "document": "types of the Python package anthropic",
        "version": version("anthropic"),
        "operations": operations,
        "schemas": dict(sorted(schemas.items())),
    }
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    RECORD.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
