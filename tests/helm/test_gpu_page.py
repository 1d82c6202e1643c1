"""The chart accepts the values on the page about GPUs."""

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from tests.helm import schemas
from tests.helm.chart import HELMS, ROOT, render

PAGE = (ROOT / "deploy" / "docs" / "kubernetes-gpus.md").read_text("utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
TABLE = re.findall(r"^\| `(\{key: .*?\})`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split(":")[0])
def test_values_are_rendered(block: str) -> None:
    for item in render("deepseek-r1-2x8-h200", **yaml.safe_load(block)):
        assert schemas.problems(item, "1.36") == []


def test_devices_can_be_named_as_shown() -> None:
    (block,) = [block for block in BLOCKS if "# hca:" in block]
    shown: dict[str, Any] = yaml.safe_load(block.replace("# hca", "hca").replace("# mem", "mem"))
    assert render("deepseek-r1-2x8-h200", **shown)


@pytest.mark.parametrize("topology", sorted(set(TABLE)))
def test_topologies_are_rendered(topology: str) -> None:
    given = yaml.safe_load(topology.replace("…", "example.com/block"))
    pool = yaml.safe_load(BLOCKS[0])["pools"][0] | {"groups": 2, "topology": given}
    assert render("deepseek-r1-2x8-h200", pools=[pool])


def test_the_table_of_topologies_is_found() -> None:
    assert len(set(TABLE)) == 3


@pytest.mark.parametrize("helm", ["3", "4"])
def test_the_installation_with_the_check_renders(helm: str) -> None:
    (command,) = [line for line in COMMANDS if line.startswith("helm install")]
    program, _, *rest = shlex.split(command)
    assert program == "helm"
    timeout = rest.index("--timeout")
    minutes = int(rest[timeout + 1].removesuffix("m"))
    del rest[timeout : timeout + 2]
    if not HELMS[helm].is_file():
        pytest.skip(f"no Helm {helm}: .ci/tools could not fetch it")
    done = subprocess.run(
        [HELMS[helm], "template", *rest], cwd=ROOT, check=True, capture_output=True, text=True
    )
    (job,) = [
        item
        for item in yaml.safe_load_all(done.stdout)
        if item is not None and item["kind"] == "Job"
    ]
    # Helm would time out before the Job reports the reason of its failure.
    assert minutes * 60 > job["spec"]["activeDeadlineSeconds"]
    # The name with which the page excludes the check from helm test.
    assert f"!name={job['metadata']['name']}" in PAGE


def test_the_build_arguments_are_the_dockerfiles() -> None:
    text = (ROOT / "deploy/images/engine-gpu.Dockerfile").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]*?)`? \|", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == {
        "DEEPEP",
        "DEEPEP_COMMIT",
        "TORCH_CUDA_ARCH_LIST",
        "CUDA_IMAGE",
    }
    for name, default in rows:
        (value,) = re.findall(rf"^ARG {name}=(\S+)$", text, re.MULTILINE)
        if name == "CUDA_IMAGE":
            version = re.search(r"\d+\.\d+", default)
            assert version is not None
            assert version[0] in value
        else:
            assert value.startswith(default.rstrip("…"))
