"""deploy/docs/admission.md agrees with the code."""

import re
from pathlib import Path

import pytest

from serving.admission.queue import SHARES
from serving.request_context import Priority
from serving.settings import AdmissionSettings
from serving.telemetry.metrics import REGISTRY

TEXT = (Path(__file__).resolve().parents[3] / "deploy" / "docs" / "admission.md").read_text("utf-8")


def rows(section):
    part = TEXT.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


def test_every_setting_is_there_with_its_default():
    documented = {
        name: default
        for names, default, _ in rows("Settings")
        for name in re.findall(r"`(\w+)`", names)
    }
    expected = {
        name: "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in AdmissionSettings().model_dump().items()
    }
    documented.pop("admission", None)
    assert documented == expected


def test_every_metric_is_there():
    documented = set(re.findall(r"moe_[a-z_]+", " ".join(row[0] for row in rows("Metrics"))))
    exported = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in REGISTRY.collect()
        if metric.name.startswith(("moe_admission_", "moe_quota_"))
    }
    assert documented == exported


@pytest.mark.parametrize("priority", Priority)
def test_shares(priority):
    assert f"{priority.name.lower()} {SHARES[priority]:g}" in TEXT
