"""The distribution: the wheel's model files, the commands and the plugin's entry point."""

import ast
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from serving.cli.doctor.checks import MODEL_FILES
from serving.console.assets import assets
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from an unpacked source distribution, as package indexes get both."""
    folder = tmp_path_factory.mktemp("dist")
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(folder))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = [path for path in folder.iterdir() if path.is_dir()]
    (built,) = WheelBuilder(str(unpacked)).build(directory=str(folder))
    return Path(built)


def modules(wheel):
    """Return the source of each of our modules in the wheel, by its dotted name."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): archive.read(name)
            for name in archive.namelist()
            if name.endswith(".py")
        }


def test_the_wheel_holds_serving_and_the_load_generator_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert folders == {"serving", "loadtest", "moe_serving-0.1.0.dist-info"}
    assert {"loadtest/command.py", "serving/cli/main.py", "serving/py.typed"} <= set(names)
    assert {f"serving/console/static/{path}" for path in assets()} <= set(names)
    inside = {name.split("/")[1] for name in names if name.startswith("loadtest/")}
    assert all(name.endswith(".py") for name in inside), inside
    assert not [name for name in names if "test_" in name]


def test_what_the_wheel_imports_of_ours_is_in_the_wheel(wheel):
    held = modules(wheel)
    wanted = set()
    for source in held.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted.add(node.module)
    ours = {name for name in wanted if name.split(".")[0] in {"serving", "loadtest", "tests"}}
    assert len(ours) > 100
    assert ours <= held.keys()


def test_the_load_command_runs_from_the_wheel(wheel):
    code = (
        f"import sys; sys.path[:0] = [{str(wheel)!r}]; import loadtest, serving; "
        f"assert all(module.__path__[0].startswith({str(wheel)!r}) for module in "
        "(loadtest, serving)); from serving.cli.main import main; "
        "sys.exit(main(['load', 'run', '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: moe-serving load run" in done.stdout


def test_vllm_finds_the_plugin_and_the_shell_the_command():
    (plugin,) = entry_points(group="vllm.general_plugins", name="moe_serving_cpu")
    assert plugin.value == "serving.engine.cpu_plugin:register"
    (command,) = entry_points(group="console_scripts", name="moe-serving")
    assert command.value == "serving.cli.main:main"
