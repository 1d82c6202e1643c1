"""The grammar of forced tool calls: JSON objects, with the white space that other JSON may have.

vLLM 0.32 hands a tool's schema to xgrammar inside a structural tag. There the rule about white
space that holds for ``response_format`` (``structured_outputs_config.disable_any_whitespace``)
does not hold, and a tool without ``strict`` may be called with any JSON, a bare number among it.
"""

import json
from typing import Any

import xgrammar
from vllm.sampling_params import StructuredOutputsParams

_OBJECT = {"type": "object"}


def tightened(params: StructuredOutputsParams, *, compact: bool) -> StructuredOutputsParams:
    """Return the grammar of tool calls with objects as arguments.

    Args:
        params: what vLLM's ``Parser.adjust_request`` made of the request's tools.
        compact: allow no white space between the parts of the JSON.
    """
    if params.structural_tag is None:
        return params
    tag = json.loads(params.structural_tag)
    return StructuredOutputsParams(
        structural_tag=json.dumps(_rewritten(tag, compact=compact)),
        disable_any_whitespace=params.disable_any_whitespace,
    )


def _rewritten(node: Any, *, compact: bool) -> Any:
    if isinstance(node, list):
        return [_rewritten(item, compact=compact) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema" and node.get("style", "json") == "json":
        return _object_format(node, compact=compact)
    return {key: _rewritten(value, compact=compact) for key, value in node.items()}


def _object_format(node: dict[str, Any], *, compact: bool) -> dict[str, Any]:
    schema = node["json_schema"]
    schema = _OBJECT if schema is True or schema == {} else schema
    if not compact or node.get("any_order") or node.get("excludes"):
        return node | {"json_schema": schema}
    # As vLLM's xgrammar backend compiles response_format.
    grammar = xgrammar.Grammar.from_json_schema(
        json.dumps(schema), any_whitespace=False, separators=(",", ":")
    )
    return {"type": "grammar", "grammar": str(grammar)}
