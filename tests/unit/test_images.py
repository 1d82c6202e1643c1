"""Checks of the images that do not build them."""

import re
from pathlib import Path

import pytest
import yaml

from tests.e2e.kuberay import pods

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "images").glob("*.Dockerfile"))
VALUES = yaml.safe_load((ROOT / "helm/moe-serving/values.yaml").read_text("utf-8"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, with lines joined and comments omitted."""
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in text.splitlines())
        if name
    ]


def stages(file: Path) -> list[tuple[str, str]]:
    """Return image and name of each stage; the last has no name."""
    found = []
    for name, rest in instructions(file):
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            found.append((image.strip(), stage.strip()))
    return found


def defaults(file: Path) -> dict[str, str]:
    """Return the build arguments declared before the first stage: FROM can use no others."""
    found = {}
    for name, rest in instructions(file):
        if name == "FROM":
            break
        assert name == "ARG"
        key, _, value = rest.partition("=")
        found[key] = value
    return found


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
    # Triton needs a compiler when it runs; no other image does.
    assert ("gcc" in text) is (file.name == "engine-gpu.Dockerfile")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_say_what_they_are(file: Path) -> None:
    labels = " ".join(rest for name, rest in last_stage(file) if name == "LABEL")
    for label in ("title", "description", "version", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name.startswith("engine")], ids=lambda file: file.name
)
def test_the_commands_of_kuberays_probes_are_in_the_image(file: Path) -> None:
    """The operator writes probes that run in the container; it brings no programs for them."""
    probes = (pods.WORKER_READINESS, pods.OLDER_HEAD_HEALTH, pods.OLDER_WORKER_LIVENESS)
    needed = {shell for shell, *_ in probes}
    for _, _, line in probes:
        needed |= {part.split()[0] for part in re.split(r"&&|\|", line)}
    assert {"bash", "wget", "grep"} == needed
    installed = {
        word
        for name, rest in last_stage(file)
        if name == "RUN" and "apt-get install" in rest
        for word in rest.split()
    }
    # Debian's base system, which the image starts from, has these two.
    assert needed - {"bash", "grep"} <= installed


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_stages_build_on_what_is_there(file: Path) -> None:
    given, names = defaults(file), [name for _, name in stages(file) if name]
    assert len(names) == len(set(names))
    earlier: set[str] = set()
    for image, name in stages(file):
        for argument in re.findall(r"\$\{(\w+)\}", image):
            assert argument in given, f"{image}: {argument} is not declared before the first FROM"
        full = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], image)
        # A stage of this file, or an image with a registry in its name.
        assert full in earlier or full.count("/") >= 2, full
        earlier.add(name)
    for name, rest in instructions(file):
        if name == "COPY" and (source := re.search(r"--from=(\S+)", rest)):
            assert source[1] in names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_libraries_come_with_what_they_only_recommend(file: Path) -> None:
    """Debian's libibverbs1 recommends its drivers; without them no device is found."""
    text = " ".join(rest for name, rest in last_stage(file) if name == "RUN")
    if "libibverbs1" in text:
        assert "--no-install-recommends" in text
        assert "ibverbs-providers" in text
    assert ("libibverbs1" in text) is (file.name == "engine-gpu.Dockerfile")


GPU = ROOT / "deploy/images/engine-gpu.Dockerfile"


@pytest.mark.parametrize("choice", ["build", "none"])
def test_deepep_is_made_or_left_out(choice: str) -> None:
    assert ("deepep-${DEEPEP}", "deepep") in stages(GPU)
    assert f"deepep-{choice}" in [name for _, name in stages(GPU)]


def test_by_default_the_presets_all_to_all_is_in_the_image() -> None:
    kinds = {
        yaml.safe_load(file.read_text("utf-8")).get("engine", {}).get("allToAll", "")
        for file in (ROOT / "deploy/presets").glob("*.yaml")
    }
    assert any(kind.startswith("deepep") for kind in kinds)
    assert defaults(GPU)["DEEPEP"] == "build"


def test_what_deepep_is_made_of_is_pinned() -> None:
    text = "\n".join(f"{name} {rest}" for name, rest in instructions(GPU))
    assert re.search(r"ARG DEEPEP_COMMIT=[0-9a-f]{40}\n", text)
    assert re.search(r"git fetch .* \$\{DEEPEP_COMMIT\}", text)
    (tools,) = re.findall(r"pip install (setuptools\S* .*?) &&", text)
    assert all("==" in tool for tool in tools.split())
    # Against the environment's own PyTorch and NVSHMEM, and never without NVSHMEM.
    assert "--no-build-isolation" in text
    assert "import nvidia.nvshmem" in text
    # The compiler's version is in the image's name and in the path that is copied.
    version = re.search(r"cuda:(\d+\.\d+)\.\d+-devel", defaults(GPU)["CUDA_IMAGE"])
    assert version is not None
    assert f"/usr/local/cuda-{version[1]} " in text


def test_wheels_reach_the_last_stage() -> None:
    assert ("COPY", "--from=environment /opt/serving /opt/serving") in last_stage(GPU)
    environment = False
    for name, rest in instructions(GPU):
        if name == "FROM":
            environment = rest.endswith(" AS environment")
        if environment and name == "RUN":
            assert "find /made /wheels -name '*.whl'" in rest
