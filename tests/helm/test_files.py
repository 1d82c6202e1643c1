"""Generated files are up to date; presets, rules and docs agree with the code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, PRESETS, ROOT, find, render

DOCS = ROOT / "deploy" / "docs"
PROMETHEUS = ROOT / "deploy" / "prometheus"
SIZING = yaml.safe_load((ROOT / "deploy/presets/sizing.yaml").read_text("utf-8"))
ONE_MODEL = [name for name, entry in SIZING["presets"].items() if "model" in entry]
"""The presets with one model; tests/helm/test_models.py renders the other preset."""


def test_schema_and_readme_are_as_generated() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("preset", ONE_MODEL)
def test_a_presets_values_are_its_models_figures(preset: str) -> None:
    default = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["model"]
    given = yaml.safe_load(PRESETS[preset].read_text("utf-8"))["model"]
    values = default | given
    figures = SIZING["models"][SIZING["presets"][preset]["model"]]
    assert values["attentionHeads"] == figures["num_attention_heads"]
    assert values["keyValueHeads"] == figures["num_key_value_heads"]
    assert values["routedExperts"] == figures["n_routed_experts"]
    assert (values["attention"] == "mla") is ("kv_lora_rank" in figures)


@pytest.mark.parametrize("preset", ONE_MODEL)
def test_the_charts_presets_are_those_of_deploy(preset: str) -> None:
    assert PRESETS[preset].resolve() == ROOT / "deploy" / "presets" / f"{preset}.yaml"


def rules(**values: Any) -> list[dict[str, Any]]:
    found = find(render("everything", **values), "PrometheusRule")["spec"]["groups"]
    return [rule for group in found for rule in group["rules"]]


def sources() -> list[dict[str, Any]]:
    """The rules of deploy/prometheus, which promtool tests."""
    return [
        rule
        for file in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((PROMETHEUS / "rules" / file).read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def test_the_charts_rules_are_those_of_deploy_for_one_release() -> None:
    own = 'namespace="prod",fleet="serve-moe-serving"'
    labels = {"namespace": "prod", "fleet": "serve-moe-serving"}
    rendered = {name(rule): rule for rule in rules()}
    for source in sources():
        rule = rendered.pop(name(source))
        # Without its scope it is the same.
        plain = rule["expr"].replace(f"{{{own}}}", "").replace(f",{own}", "")
        assert plain == " ".join(source["expr"].split())
        assert rule["labels"] == labels | source.get("labels", {})
        assert rule.get("annotations") == source.get("annotations")
        assert rule.get("for") == source.get("for")
    assert rendered == {}


def test_every_series_of_a_rule_is_this_releases() -> None:
    for rule in rules():
        series = re.findall(
            r"(?<![\w:])((?:fleet:moe|moe)_[a-z0-9_:]+|up\b)(\{[^}]*\})?", rule["expr"]
        )
        assert series
        for metric, matchers in series:
            assert 'namespace="prod",fleet="serve-moe-serving"' in matchers, (
                f"{name(rule)}: {metric}"
            )


def test_what_is_scraped_carries_the_labels_that_rules_ask_for() -> None:
    objects = render("everything")
    monitor = find(objects, "ServiceMonitor", "-router")["spec"]["endpoints"][0]
    scaler = find(objects, "PodMonitor", "-autoscaler")["spec"]["podMetricsEndpoints"][0]
    for scraped, job in ((monitor, "moe-routers"), (scaler, "moe-autoscaler")):
        assert {entry["targetLabel"]: entry["replacement"] for entry in scraped["relabelings"]} == {
            "job": job,
            "fleet": "serve-moe-serving",
        }
    (container,) = find(objects, "Deployment", "-autoscaler")["spec"]["template"]["spec"][
        "containers"
    ]
    assert scaler["port"] in {port["name"] for port in container["ports"]}


def test_the_autoscalers_rules_come_with_it() -> None:
    names = {name(rule) for rule in rules(autoscaler={"enabled": False})}
    assert "MoeNoGroupReady" in names
    assert not [found for found in names if "Autoscaler" in found]
    with_it = {name(rule) for rule in rules()}
    assert {"MoeAutoscalerBlind", "MoeAutoscalerGone", "MoeGroupsMissing"} <= with_it - names


def test_prometheus_takes_the_rendered_rules(tmp_path: Path) -> None:
    promtool = ROOT / ".tools" / "prometheus" / "promtool"
    if not promtool.is_file():
        pytest.skip("no promtool in .tools: .ci/tools fetches it and says if it cannot")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(find(render("everything"), "PrometheusRule")["spec"]))
    done = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_the_dashboards_are_those_of_deploy() -> None:
    objects = render("everything")
    for file in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
        made = find(objects, "ConfigMap", f"-dashboard-{file.stem}")
        assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert made["metadata"]["annotations"] == {"grafana_folder": "moe-serving"}
        assert made["data"][f"serve-moe-serving-{file.name}"].strip() == file.read_text().strip()
        shown = json.loads(made["data"][f"serve-moe-serving-{file.name}"])
        assert shown["uid"]
        assert shown["panels"]


def test_a_generated_file_that_has_no_source_is_found(tmp_path: Path) -> None:
    """A copy of the part of the repository that generate.py needs, with one additional file."""
    for part in ("helm", "deploy/prometheus", "deploy/grafana", "serving"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("deploy/models",):
        (tmp_path / part).mkdir(parents=True)
    extra = tmp_path / "helm/moe-serving/files/dashboards/old.json"
    extra.write_text("{}")
    changed = tmp_path / "deploy/prometheus/rules/alerts.yml"
    changed.write_text(changed.read_text().replace("> 3", "> 4"))
    command = [sys.executable, str(tmp_path / "helm" / "generate.py")]
    checked = subprocess.run(
        [*command, "--check"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert checked.returncode == 1
    assert "files/rules/fleet.yaml" in checked.stdout
    assert "files/dashboards/old.json" in checked.stdout
    assert subprocess.run(command, check=False, cwd=tmp_path).returncode == 0
    assert not extra.exists()
    assert "> 4" in (tmp_path / "helm/moe-serving/files/rules/fleet.yaml").read_text()


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
        for page in [
            *sorted(DOCS.glob("kubernetes*.md")),
            *sorted((DOCS / "runbooks").glob("*.md")),
        ]
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
