"""deploy/docs/metrics.md and the declared metrics agree; names and labels follow the rules."""

import re
from pathlib import Path

import pytest

from serving.telemetry.autoscaler_metrics import AUTOSCALER_REGISTRY
from serving.telemetry.fleet_metrics import FAMILIES
from serving.telemetry.metrics import REGISTRY

PAGE = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(moe_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (.+?) \| (.*)\|$")


def documented():
    """Name -> (type, labels) of each row; the table of ranks has its labels in its first line."""
    found = {}
    of_ranks = False
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            of_ranks = line == "## Ranks"
        elif line.startswith("| `"):
            name, labels, kind, meaning, _ = ROW.match(line).groups()
            assert meaning.strip(), name
            assert name not in found, f"{name} is there twice"
            found[name] = (kind, {"group", "rank"} if of_ranks else set((labels or "").split(",")))
    return {name: (kind, labels - {""}) for name, (kind, labels) in found.items()}


def declared():
    found = {}
    for metric in (
        *REGISTRY._collector_to_names,
        *AUTOSCALER_REGISTRY._collector_to_names,
    ):
        suffix = "_total" if metric._type == "counter" else ""
        found[metric._name + suffix] = (metric._type, set(metric._labelnames))
    for family in FAMILIES:
        suffix, kind = ("_total", "counter") if family.counter else ("", "gauge")
        kind = "histogram" if family.buckets else kind
        found[family.name + suffix] = (kind, set(family.labels))
    return found


def test_the_page_says_what_is_declared_and_nothing_else():
    assert documented() == declared()


@pytest.mark.parametrize("name", sorted(declared()))
def test_names_have_the_prefix_and_a_base_unit(name):
    assert name.startswith("moe_")
    assert not re.search(r"_(ms|milliseconds|kb|mb|gb|percent)(_|$)", name)


def test_only_few_kinds_of_labels_exist():
    labels = {label for _, labels in declared().values() for label in labels}
    assert labels == {
        "action", "app", "code", "direction", "group", "kind", "layers", "model", "outcome", "over",
        "period", "pool", "priority", "protocol", "rank", "reason", "rule", "scope", "scorer",
        "stage", "state", "tenant", "way",
    }  # fmt: skip
