"""The table of permissions in autoscaling.md matches the chart's Role and ClusterRole."""

import re

from tests.docs.pages import ROOT
from tests.helm.chart import render

PAGE = ROOT / "deploy" / "docs" / "autoscaling.md"
_ROW = re.compile(r"^\| (`?[\w.]+`?) \| `(\w+)`[^|]* \| ([a-z, ]+) \|", re.MULTILINE)


def test_the_table_is_what_the_chart_gives() -> None:
    objects = render(
        "pocket-r1-cpu",
        autoscaler={"enabled": True, "maxGroups": 2, "prometheusUrl": "http://prometheus:9090"},
        security={"openMetrics": True},
    )
    given = {
        (group, resource, verb)
        for item in objects
        if item["kind"] in {"Role", "ClusterRole"}
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    listed = {
        ("" if group == "core" else group.strip("`"), resource, verb.strip())
        for group, resource, verbs in _ROW.findall(PAGE.read_text("utf-8"))
        for verb in verbs.split(",")
    }
    assert listed == given
