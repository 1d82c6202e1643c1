"""doctor --preset: every preset fits; the report on others states what to change."""

import shutil
from pathlib import Path

import pytest
import yaml

from serving.cli.doctor.checks import Verdict
from serving.cli.doctor.doctor import doctor_command
from serving.cli.doctor.presets import (
    preset_names,
    preset_sizes,
    presets_folder,
    quantity,
    size_checks,
)
from serving.errors import SettingsError
from serving.settings import EngineSettings

FOLDER = presets_folder()
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the presets, for changes."""
    return Path(shutil.copytree(FOLDER, tmp_path / "presets"))


def change(folder: Path, name: str, **values: object) -> None:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text("utf-8")) | values), "utf-8")


def test_every_values_file_is_a_preset_and_sized() -> None:
    files = {file.stem for file in FOLDER.glob("*.yaml")} - {"sizing"}
    assert files == set(preset_names(FOLDER))


@pytest.mark.parametrize("name", preset_names(FOLDER))
def test_every_preset_fits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor_command(preset=name) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown
    assert "one token" in shown
    assert "-> " not in shown


def test_each_model_of_a_preset_of_several_is_sized_as_in_its_own() -> None:
    both = {size.model_name: size for size in preset_sizes("two-models", FOLDER)}
    for preset, model in (
        ("deepseek-r1-2x8-h200", "deepseek-r1"),
        ("qwen3-30b-a3b-1x2", "qwen3-30b-a3b"),
    ):
        (alone,) = preset_sizes(preset, FOLDER)
        assert both[model].used == alone.used
        assert both[model].device == alone.device


def test_the_issues_example() -> None:
    (size,) = preset_sizes("deepseek-r1-2x8-h200", FOLDER)
    text = "\n".join(check.seen for check in size_checks(size))
    assert "671.0 B parameters, 37.6 B active" in text
    assert "16 ranks x 1 = 16 workers (EP16)" in text
    assert "70,272 bytes" in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param("deepseek-r1-2x8-h200", {"parallelism": {"data": 4}}, id="too-few-ranks"),
        pytest.param(
            "deepseek-v2-lite-1x4", {"model": {"maxModelLen": 10**6}}, id="too-long-a-sequence"
        ),
        pytest.param(
            "qwen3-30b-a3b-1x2",
            {"engine": {"args": {"gpu_memory_utilization": 0.3}}},
            id="too-small-a-share",
        ),
        pytest.param(
            "pocket-r1-cpu",
            {"pools": [{"name": "cpu", "resources": {"cpu": "1", "memory": "3Gi"}}]},
            id="too-small-a-pod",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name: str, values: dict[str, object], folder: Path) -> None:
    change(folder, name, **values)
    (size,) = preset_sizes(name, folder)
    *_, last = size_checks(size)
    assert last.verdict is Verdict.FAIL
    assert "too little memory" in last.seen
    assert "parallelism.data" in last.advice


def test_multi_token_prediction_takes_memory(folder: Path) -> None:
    (with_it,) = preset_sizes("deepseek-r1-2x8-h200", folder)
    change(folder, "deepseek-r1-2x8-h200", engine={"speculative": "none"})
    (without,) = preset_sizes("deepseek-r1-2x8-h200", folder)
    assert with_it.used.prediction > 0 == without.used.prediction
    assert with_it.used.experts > without.used.experts


def test_a_pool_may_split_differently(folder: Path) -> None:
    pools = yaml.safe_load((folder / "deepseek-r1-2x8-h200.yaml").read_text("utf-8"))["pools"]
    pools.append(pools[0] | {"name": "other", "parallelism": {"data": 32}})
    change(folder, "deepseek-r1-2x8-h200", pools=pools)
    first, second = preset_sizes("deepseek-r1-2x8-h200", folder)
    assert (first.deployment.data, second.deployment.data) == (16, 32)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match="known presets: deepseek-r1-2x8-h200, "):
        preset_sizes("deepseek-r2", FOLDER)


def test_figures_that_are_wrong_name_their_file(folder: Path) -> None:
    sizing = yaml.safe_load((folder / "sizing.yaml").read_text("utf-8"))
    sizing["models"]["pocket-r1"]["heads"] = 1
    (folder / "sizing.yaml").write_text(yaml.safe_dump(sizing), "utf-8")
    with pytest.raises(SettingsError, match=r"sizing.yaml: model pocket-r1: unknown figures heads"):
        preset_sizes("pocket-r1-cpu", folder)


def test_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "pocket-r1-cpu.yaml").unlink()
    with pytest.raises(SettingsError, match="cannot read"):
        preset_sizes("pocket-r1-cpu", folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4Gi", 4 * 2**30), ("500M", 500_000_000), ("1.5Gi", 3 * 2**29), (1024, 1024), ("7", 7)],
)
def test_quantities(text: str | int, expected: int) -> None:
    assert quantity(text) == expected


def test_no_quantity() -> None:
    with pytest.raises(SettingsError, match="lots is not a memory quantity"):
        quantity("lots")


def test_what_a_preset_leaves_out_is_the_same_in_chart_and_settings() -> None:
    chart = yaml.safe_load((ROOT / "helm/moe-serving/values.yaml").read_text("utf-8"))["engine"]
    assert chart["maxNumSeqs"] == EngineSettings().max_num_seqs
    assert chart["kvCacheGib"] == EngineSettings().kv_cache_gib
    assert chart["speculative"] == EngineSettings().speculative
