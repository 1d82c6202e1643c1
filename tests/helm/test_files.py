"""Generated files are as generated; presets, rules and docs agree with the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.telemetry import metrics
from tests.helm.chart import CHART, PRESETS, ROOT, find, render

DOCS = ROOT / "deploy" / "docs"
SIZING = yaml.safe_load((ROOT / "deploy/presets/sizing.yaml").read_text("utf-8"))


def test_schema_and_readme_are_as_generated() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("preset", SIZING["presets"])
def test_a_presets_values_are_its_models_figures(preset: str) -> None:
    default = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["model"]
    given = yaml.safe_load(PRESETS[preset].read_text("utf-8"))["model"]
    values = default | given
    figures = SIZING["models"][SIZING["presets"][preset]["model"]]
    assert values["attentionHeads"] == figures["num_attention_heads"]
    assert values["keyValueHeads"] == figures["num_key_value_heads"]
    assert values["routedExperts"] == figures["n_routed_experts"]
    assert (values["attention"] == "mla") is ("kv_lora_rank" in figures)


@pytest.mark.parametrize("preset", SIZING["presets"])
def test_the_charts_presets_are_those_of_deploy(preset: str) -> None:
    assert PRESETS[preset].resolve() == ROOT / "deploy" / "presets" / f"{preset}.yaml"


def rules() -> list[dict[str, str]]:
    found = find(render("everything"), "PrometheusRule")["spec"]["groups"]
    return [rule for group in found for rule in group["rules"]]


def test_alerts_use_metrics_that_exist() -> None:
    families = {item.name for item in vars(metrics).values() if isinstance(item, metrics.Family)}
    known = families | {family.name for family in metrics.REGISTRY.collect()}
    for rule in rules():
        names = set(re.findall(r"\bmoe_[a-z_]+", rule["expr"]))
        assert names
        assert {name.removesuffix("_total") for name in names} <= known


def test_alerts_lead_to_pages_that_exist() -> None:
    for rule in rules():
        assert (ROOT / rule["annotations"]["runbook"]).is_file()  # type: ignore[index]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_of_the_docs_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_values_that_the_docs_name_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    pool = set(
        yaml.safe_load((ROOT / "helm/values.schema.yaml").read_text("utf-8"))["definitions"][
            "pool"
        ]["properties"]
    )
    text = "\n".join(
        page.read_text("utf-8")
        for page in [DOCS / "kubernetes.md", *sorted((DOCS / "runbooks").glob("*.md"))]
    )
    tops = "|".join(key for key in values if key != "settings")
    for name in re.findall(rf"`((?:{tops})(?:\[\])?\.[A-Za-z.]+)", text):
        top, *rest = name.rstrip(".").split(".")
        if top == "pools[]":
            assert rest[0] in pool, name
            continue
        at = values[top]
        for part in rest:
            if not isinstance(at, dict) or (not at and part):
                break
            assert part in at, name
            at = at[part]
