"""The reference of the chart's values, from helm/moe-serving/values.yaml and its comments."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml

from deploy.docs.generate.markdown import table

HELM = Path(__file__).resolve().parents[3] / "helm"

_HEAD = """\
# Chart values

Values of the Helm chart [helm/moe-serving](../../../helm/moe-serving), by group.
[kubernetes.md](../kubernetes.md) explains how to install it,
[kubernetes-gpus.md](../kubernetes-gpus.md) what GPU nodes need.
Unknown keys are errors.

This page is generated from the comments in values.yaml.
"""


def page() -> str:
    """Return the page."""
    values = yaml.safe_load((HELM / "moe-serving" / "values.yaml").read_text("utf-8"))
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for name, text in _described():
        default: Any = values
        for part in name.split("."):
            default = default[part]
        shown = json.dumps(default, ensure_ascii=False)
        top = name.partition(".")[0]
        group = top if isinstance(values[top], dict) and values[top] else "General"
        groups.setdefault(group, []).append((f"`{name}`", f"`{shown}`", text))
    parts = [_HEAD]
    for group, rows in groups.items():
        parts += [f"\n## {group}\n\n", table(("value", "default", "description"), rows)]
    return "".join(parts)


def _described() -> list[tuple[str, str]]:
    """Return dotted name and description of every value, as helm/generate.py reads them."""
    spec = importlib.util.spec_from_file_location("helm_generate", HELM / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[tuple[str, str]] = module.described_values()
    return found
