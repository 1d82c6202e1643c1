"""deploy/prometheus: valid, tested by promtool, and using existing metrics."""

import re
import subprocess
from itertools import chain
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.errors import ERROR_TABLE
from serving.telemetry import autoscaler_metrics, fleet_metrics, metrics

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
PROMTOOL = ROOT / ".tools" / "prometheus" / "promtool"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
TESTS = sorted((FOLDER / "tests").glob("*.yml"))


def rules():
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def known_names() -> set[str]:
    """Return the names of all declared metrics in the text format."""
    names = {"up"} | {rule["record"] for rule in rules() if "record" in rule}
    modules = (metrics, fleet_metrics, autoscaler_metrics)
    for value in chain(*(vars(module).values() for module in modules)):
        if isinstance(value, fleet_metrics.Family):
            names.add(value.name + ("_total" if value.counter else ""))
        if isinstance(value, CollectorRegistry):
            for metric in value._names_to_collectors:
                names.add(metric)
    return names


def promtool(*arguments):
    if not PROMTOOL.exists():
        pytest.skip("no promtool in .tools/prometheus: .ci/tools fetches it and says if it cannot")
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)


def test_the_configuration_is_valid():
    done = promtool("check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules(file):
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_in_a_rule_is_declared():
    text = " ".join(rule["expr"] for rule in rules())
    used = set(re.findall(r"\b(?:fleet:)?moe_[a-z0-9_:]+", text))
    assert used <= known_names(), sorted(used - known_names())


def test_every_alert_is_tested_and_says_what_to_do():
    tested = {
        case["alertname"]
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    alerts = [rule for rule in rules() if "alert" in rule]
    assert tested == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_outcomes_that_spend_the_budget_are_reasons_of_errors():
    reasons = {status.reason for status in ERROR_TABLE.values()}
    text = " ".join(rule["expr"] for rule in rules())
    found = re.findall(r'outcome=~"([A-Z_|]+)"', text)
    assert found
    for alternatives in found:
        assert set(alternatives.split("|")) <= reasons


def test_buckets_in_rules_are_buckets_of_the_histogram():
    text = " ".join(rule["expr"] for rule in rules())
    bounds = {str(bound) for bound in metrics.TIME_TO_FIRST_TOKEN._upper_bounds}
    assert set(re.findall(r'le="([0-9.]+)"', text)) <= bounds
