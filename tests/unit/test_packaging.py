"""What is shipped: the wheel's model files, the commands and the plugin's entry point."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from serving.cli.doctor.checks import MODEL_FILES
from serving.settings import bundled_model

ROOT = Path(__file__).resolve().parents[2]


def included_model_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    return {source: target for source, target in included.items() if "/models/" in source}


def test_the_wheel_carries_the_presets():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["deploy/presets"] == "serving/bundled/presets"
    assert (ROOT / "deploy/presets/sizing.yaml").is_file()


def test_the_wheel_carries_what_serving_the_bundled_model_needs():
    included = included_model_files()
    assert set(MODEL_FILES) <= {Path(source).name for source in included}
    for source, target in included.items():
        assert (ROOT / source).is_file()
        assert target == f"serving/bundled/pocket-r1/{Path(source).name}"


def test_everything_in_the_model_folder_that_is_no_source_is_included():
    included = included_model_files()
    data = {
        file.name
        for file in bundled_model().iterdir()
        if file.suffix in {".json", ".jinja", ".safetensors"}
    }
    assert data == {Path(source).name for source in included}


def test_the_wheel_carries_the_load_generator_that_a_command_starts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["serving", "loadtest"]


def test_vllm_finds_the_plugin_and_the_shell_the_command():
    (plugin,) = entry_points(group="vllm.general_plugins", name="moe_serving_cpu")
    assert plugin.value == "serving.engine.cpu_plugin:register"
    (command,) = entry_points(group="console_scripts", name="moe-serving")
    assert command.value == "serving.cli.main:main"
