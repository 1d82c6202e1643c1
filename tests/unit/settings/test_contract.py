"""The contract of the settings: every key with its type, its bounds and its default."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.settings import Settings

CONTRACT = Path(__file__).parent / "contract.txt"
BOUNDS = ("type", "enum", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "pattern")

POOL_PARTS = (" ", "[].group.", "[].engine.")


def facts(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one value, without its texts."""
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    said: dict[str, Any] = {name: node[name] for name in BOUNDS if name in node}
    if "anyOf" in node:
        said["anyOf"] = [facts(item, definitions) for item in node["anyOf"]]
    if "items" in node:
        said["items"] = facts(node["items"], definitions)
    return said


def lines(node: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, item in node["properties"].items():
        inner = definitions.get(item.get("$ref", "").rpartition("/")[2], {})
        if "properties" in inner:
            yield from lines(inner, definitions, f"{prefix}{name}.")
            continue
        said = facts(item, definitions)
        said["default"] = item.get("default", "(required)")
        yield f"{prefix}{name} {json.dumps(said, sort_keys=True)}"


def test_keys_types_bounds_and_defaults_are_pinned():
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    found = [
        *lines(schema, definitions),
        *lines(definitions["ScheduleFloor"], definitions, "autoscaler.schedule[]."),
        *lines(definitions["ServedModelSettings"], definitions, "models[]."),
        *lines(definitions["PoolSettings"], definitions, "models[].pools[]."),
    ]
    # The path of the bundled model differs; groups and engines of pools are like other groups.
    left_out = ("model.path ", *(f"models[].pools{name}" for name in POOL_PARTS))
    found = [line for line in found if not line.startswith(left_out)]
    assert sorted(found) == CONTRACT.read_text("utf-8").splitlines()
