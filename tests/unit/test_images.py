"""What can be said of the images without building them."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "images").glob("*.Dockerfile"))
VALUES = yaml.safe_load((ROOT / "helm/moe-serving/values.yaml").read_text("utf-8"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, lines joined and comments left out."""
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in text.splitlines())
        if name
    ]


def last_stage(file: Path) -> list[tuple[str, str]]:
    found = instructions(file)
    start = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def test_the_chart_names_images_that_have_a_dockerfile() -> None:
    names = {file.name.removesuffix(".Dockerfile") for file in FILES}
    assert names == {"router", "engine-cpu", "engine-gpu"}
    for image in VALUES["image"].values():
        if isinstance(image, dict):
            assert image["repository"].rpartition("/")[2] in names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_that_are_copied_exist_and_are_let_into_the_context(file: Path) -> None:
    allowed = [
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    for name, rest in instructions(file):
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == item or source.startswith(f"{item}/") for item in allowed)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_containers_run_as_the_charts_user(file: Path) -> None:
    (user,) = [rest for name, rest in last_stage(file) if name == "USER"]
    assert user == f"{VALUES['security']['runAsUser']}:{VALUES['security']['runAsUser']}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_last_stage_builds_nothing(file: Path) -> None:
    text = " ".join(rest for name, rest in last_stage(file) if name == "RUN")
    assert "pip" not in text
    # Triton needs a compiler when it runs; nothing else does.
    assert ("gcc" in text) is (file.name == "engine-gpu.Dockerfile")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_say_what_they_are(file: Path) -> None:
    labels = " ".join(rest for name, rest in last_stage(file) if name == "LABEL")
    for label in ("title", "description", "version", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name.startswith("engine")], ids=lambda file: file.name
)
def test_kuberay_finds_wget(file: Path) -> None:
    assert any("wget" in rest for name, rest in last_stage(file) if name == "RUN")
