""".ci/setup: its error reports, and the Python that it selects."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")


@pytest.fixture
def checkout(tmp_path):
    """A folder with what the script reads, and programs that stand in for the machine's."""
    folder = tmp_path / "checkout"
    for name in (".ci/setup", "pyproject.toml", *map(str, (ROOT / "requirements").glob("*.lock"))):
        file = ROOT / name
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (folder / "bin").mkdir()
    program(folder, "uname", "echo Linux x86_64")
    for name in PYTHONS:
        program(folder, name, "exit 127")
    return folder


def program(checkout, name, script):
    file = checkout / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    file.chmod(0o755)
    return file


def python(checkout, name, version):
    """A stand-in for an interpreter, which cannot create environments."""
    program(checkout, name, f'[ "$1" = -m ] && exit 1\necho {version}')


def setup(checkout, **environ):
    env = {
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "HOME": str(checkout),
        **environ,
    }
    done = subprocess.run(
        [checkout / ".ci/setup", "run"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stdout, done.stderr


@pytest.mark.parametrize("machine", ["Darwin arm64", "Darwin x86_64", "Linux aarch64"])
def test_other_machines_get_the_commands_for_a_container(checkout, machine):
    program(checkout, "uname", f"echo {machine}")
    _, shown = setup(checkout)
    assert f"this is {machine}" in shown
    (build,) = [line for line in shown.splitlines() if "docker build" in line]
    words = build.split()
    file = ROOT / words[words.index("-f") + 1]
    assert file.is_file()
    image = words[words.index("-t") + 1]
    run = shown[shown.index("docker run") :]
    assert f" {image} " in run
    assert "--platform linux/amd64" in build
    assert "--platform linux/amd64" in run
    # The state of `up` is below HOME, and the image's user has none.
    assert "HOME=/tmp" in file.read_text("utf-8")


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({"python3.11": "3.11", "python3.13": "3.13"}, "python3.11"),
        ({"python3.13": "3.13"}, "python3.13"),
        ({"python3.12": "3.12", "python3.13": "3.13"}, "python3.12"),
        ({"python3.11": "3.9", "python3": "3.12"}, "python3"),
    ],
    ids=["oldest", "only", "between", "unnamed"],
)
def test_the_first_supported_python_is_taken(checkout, found, taken):
    for name, version in found.items():
        python(checkout, name, version)
    script = f"case $1 in -m) exit 1 ;; -c) echo {found[taken]} ;; *) echo {taken} ;; esac"
    program(checkout, taken, script)
    shown, error = setup(checkout)
    assert f"creating .venv with {taken}\n" in shown
    assert "install the venv module" in error
    assert not (checkout / ".venv").exists()


def test_without_a_supported_python_it_names_them(checkout):
    python(checkout, "python3", "3.10")
    _, error = setup(checkout)
    assert "no Python 3.11, 3.12 or 3.13" in error
    assert "PYTHON=" in error


def test_a_python_that_is_named_is_the_one_that_counts(checkout):
    python(checkout, "python3.11", "3.11")
    python(checkout, "mine", "3.14")
    _, error = setup(checkout, PYTHON="mine")
    assert "mine is Python 3.14" in error
    _, error = setup(checkout, PYTHON="nowhere")
    assert "nowhere is not installed" in error


def test_only_known_installers_are_taken(checkout):
    _, error = setup(checkout, INSTALLER="conda")
    assert "INSTALLER=conda" in error


def test_another_python_than_that_of_the_environment_is_refused(checkout):
    python(checkout, "python3.11", "3.11")
    python(checkout, "python3.13", "3.13")
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(checkout / "bin/python3.11")
    _, error = setup(checkout, PYTHON="python3.13")
    assert ".venv has Python 3.11" in error
    assert "make clean-venv" in error
