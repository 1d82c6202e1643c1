"""The reference of the settings, from their classes and the docstrings of their fields."""

import ast
import inspect
import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.docs.generate.markdown import prose, table
from serving.settings import BUNDLED_MODEL, EngineSettings, GroupSettings, Settings

_HEAD = """\
# Settings

All settings of all processes, by group.
They come from a YAML file (`--config FILE`), environment variables and flags (`--set NAME=VALUE`),
in increasing order of precedence; a process reads them once, when it starts.
An unknown key or an invalid value ends the process with a message that names it.

Environment variables are `MOE_SERVING_<GROUP>__<KEY>`; the value of a list, a map or a group is
JSON. Durations are in seconds, sizes in bytes, unless a description says otherwise.

```yaml
# settings.yaml
group: {count: 2, data_parallel: 8}
router:
  rest_port: 8080
```

This page is generated from [serving/settings](../../../serving/settings).
"""
_HEADER = ("setting and environment variable", "type", "default", "description")

_SHARED = (GroupSettings, EngineSettings)
"""Groups of settings that are described once and can be overridden for a pool."""


def page() -> str:
    """Return the page."""
    rows, sections = [], []
    for name, field in Settings.model_fields.items():
        if (group := _group(field)) is not None:
            sections += _section(name, group)
            continue
        rows.append(_row(name, Settings, name))
        if (item := _item(field)) is not None:
            sections += _section(f"{name}[]", item)
    return "".join([_HEAD, "\n", table(_HEADER, rows), *sections])


def descriptions(cls: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field of a class, by field."""
    (node,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for item, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[item.target.id] = str(after.value.value)
    return found


def groups(cls: type[BaseModel] = Settings, prefix: str = "") -> dict[str, type[BaseModel]]:
    """Return all groups of settings, including nested ones, by dotted name."""
    found = {}
    for name, field in cls.model_fields.items():
        if (group := _group(field)) is not None:
            found[prefix + name] = group
            found |= groups(group, f"{prefix}{name}.")
    return found


def _section(name: str, group: type[BaseModel]) -> list[str]:
    parts = [f"\n## {name}\n\n{prose(group.__doc__ or '')}\n\n"]
    rows, nested = [], []
    for key, field in group.model_fields.items():
        if (inner := _group(field)) in _SHARED and "[]" in name:
            text = prose(descriptions(group)[key])
            rows.append((f"`{name}.{key}`", f"the settings of [{key}](#{key})", "", text))
            continue
        if inner is not None:
            nested += _section(f"{name}.{key}", inner)
            continue
        rows.append(_row(f"{name}.{key}", group, key))
        if (item := _item(field)) is not None:
            nested += _section(f"{name}.{key}[]", item)
    return [*parts, table(_HEADER, rows), *nested]


def _row(name: str, group: type[BaseModel], key: str) -> tuple[str, str, str, str]:
    field = group.model_fields[key]
    schema = group.model_json_schema()
    shown = f"`{name}`"
    if "[]" not in name:
        shown += f"<br>`MOE_SERVING_{name.replace('.', '__').upper()}`"
    return (
        shown,
        _type(schema["properties"][key], schema.get("$defs", {})),
        _default(field),
        prose(descriptions(group)[key]),
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return f"{len(value)} with defaults"
    if value == str(BUNDLED_MODEL):
        return "the bundled pocket-r1"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _item(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of a list's items if they are groups of settings, otherwise None."""
    for kind in get_args(field.annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a JSON schema's type and bounds in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(_type(item, definitions) for item in schema["anyOf"])
    if "enum" in schema:
        *first, last = (f"`{word}`" for word in schema["enum"])
        return f"{', '.join(first)} or {last}"
    kind = str(schema["type"])
    if kind == "array":
        item = _type(schema["items"], definitions)
        return "list of groups" if item == "object" else f"list of {item}s"
    if kind == "object":
        return "object" if "properties" in schema else "map"
    bounds = {
        "> {}": schema.get("exclusiveMinimum"),
        "≥ {}": schema.get("minimum"),
        "< {}": schema.get("exclusiveMaximum"),
        "≤ {}": schema.get("maximum"),
    }
    words = [text.format(f"{value:,}") for text, value in bounds.items() if value is not None]
    return f"{kind} {', '.join(words)}".strip()
