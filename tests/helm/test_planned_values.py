"""Values that `moe-serving plan --values` writes are accepted by the chart."""

from pathlib import Path

import pytest
import yaml

from serving.cli.main import main
from tests.helm.chart import find, render

LINE = ["plan", "--layout", "mixed", "--gpu", "h100", "--nodes", "4", "--ep", "24", "--top", "1"]


def test_planned_values_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "values.yaml"
    assert main([*LINE, "--values", str(file)]) == 0
    text = file.read_text("utf-8")
    assert text.startswith("# 1 x EP24 ")
    assert "# A model, not a measurement" in text
    service = find(render(**yaml.safe_load(text)), "RayService")
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # Three pods of eight GPUs are a group.
    assert workers["replicas"] * workers.get("numOfHosts", 1) == 3
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] in {8, "8"}
