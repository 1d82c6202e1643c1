"""Checks of ``moe-serving doctor``: pure functions from facts to a verdict with advice.

``doctor`` collects the facts, so that tests can produce every verdict on any machine.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from packaging.markers import Marker

from serving.cli.doctor.machine import GIB, memory_for


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    verdict: Verdict
    name: str
    seen: str
    advice: str = ""
    """Recommended action; empty if nothing is wrong."""


MODEL_FILES = (
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_PYTHONS = ((3, 11), (3, 12), (3, 13))
_UNWANTED = ("torchaudio", "torchcodec", "torchvision")


def check_python(version: tuple[int, int], system: str, machine: str) -> Check:
    """Check the interpreter and the platform (names as in module ``platform``)."""
    seen = f"Python {version[0]}.{version[1]} on {system} {machine}"
    if version not in _PYTHONS:
        return Check(
            Verdict.FAIL,
            "python",
            seen,
            "use Python 3.11, 3.12 or 3.13, then make clean-venv run",
        )
    if (system, machine) != ("Linux", "x86_64"):
        return Check(
            Verdict.FAIL, "python", seen, "CPU ranks require Linux x86_64; use a container"
        )
    return Check(Verdict.OK, "python", seen)


def check_cores(cores: int, ranks: int) -> Check:
    """Check the number of cores for ``ranks`` ranks in total."""
    seen = f"{cores} for {ranks} ranks"
    if cores < ranks:
        return Check(
            Verdict.WARN, "cores", seen, "ranks will share cores: slower, with the same results"
        )
    return Check(Verdict.OK, "cores", seen)


def check_memory(available: int, ranks: int) -> Check:
    """Check the available memory, bytes, for ``ranks`` ranks in total."""
    needed = memory_for(ranks)
    seen = f"{available / GIB:.1f} GiB available, about {needed / GIB:.1f} needed for {ranks} ranks"
    if available < needed:
        return Check(
            Verdict.FAIL,
            "memory",
            seen,
            "stop other programs, or use fewer ranks: --ranks 1 --groups 1",
        )
    return Check(Verdict.OK, "memory", seen)


def check_disk(free: int, folder: str, needed: int) -> Check:
    """Check the free disk space of a folder, bytes."""
    seen = f"{free / GIB:.1f} GiB free in {folder}"
    if free < needed:
        return Check(Verdict.FAIL, "disk", seen, f"free up at least {needed / GIB:.0f} GiB")
    return Check(Verdict.OK, "disk", seen)


def check_port(what: str, port: int, problem: str | None) -> Check:
    """Check a port; ``problem`` is the reason why it cannot be bound, or None."""
    name = f"port {port}"
    if problem is not None:
        return Check(
            Verdict.FAIL,
            name,
            f"{what}: {problem}",
            "stop the process that uses it, or choose another port",
        )
    return Check(Verdict.OK, name, f"{what}: free")


def read_lock(text: str) -> dict[str, str]:
    """Return the versions in a lock file (``NAME==VERSION``), by normalized name.

    Lines with a marker that does not match this Python are skipped.
    """
    found = {}
    for line in text.splitlines():
        pin, _, marker = line.partition("#")[0].partition(";")
        name, separator, version = pin.strip().partition("==")
        if separator and (not marker.strip() or Marker(marker).evaluate()):
            found[normalized(name)] = version
    return found


def normalized(name: str) -> str:
    """Return a package name in normalized form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_packages(locked: Mapping[str, str], installed: Mapping[str, str]) -> Check:
    """Compare the installed packages with the lock files (normalized names)."""
    missing = [name for name in sorted(locked) if name not in installed]
    others = [
        f"{name} {installed[name]} (locked {version})"
        for name, version in sorted(locked.items())
        if name in installed and installed[name] != version
    ]
    if missing:
        return Check(Verdict.FAIL, "packages", f"missing: {_few(missing)}", "make clean-venv run")
    if others:
        return Check(
            Verdict.WARN, "packages", f"different versions: {_few(others)}", "make clean-venv run"
        )
    return Check(Verdict.OK, "packages", f"{len(locked)} match the lock files")


def check_torch(installed: Mapping[str, str], platform: str) -> Check:
    """Check torch's build, and that no companion package breaks vLLM's CPU build."""
    version = installed.get("torch")
    if version is None:
        return Check(Verdict.FAIL, "torch", "not installed", "make clean-venv run")
    if platform == "cpu":
        unwanted = [name for name in _UNWANTED if name in installed]
        if unwanted:
            return Check(
                Verdict.WARN,
                "torch",
                f"{version}, and {', '.join(unwanted)}",
                f"CUDA builds of these break transformers: pip uninstall {' '.join(unwanted)}",
            )
        if "+cpu" not in version:
            return Check(
                Verdict.FAIL, "torch", f"{version}: not the CPU build", "make clean-venv run"
            )
    return Check(Verdict.OK, "torch", version)


def check_model(
    folder: str, files: Iterable[str], config: Mapping[str, Any] | None, world_size: int
) -> Check:
    """Check a model directory, and that its experts can be split over ``world_size`` workers."""
    missing = [name for name in MODEL_FILES if name not in set(files)]
    if missing:
        return Check(
            Verdict.FAIL,
            "model",
            f"{folder} lacks {_few(missing)}",
            "git checkout deploy/models, or choose another model: --model FOLDER",
        )
    if config is None:
        return Check(Verdict.FAIL, "model", f"{folder}/config.json is not JSON", "restore the file")
    experts = next(
        (config[key] for key in ("n_routed_experts", "num_experts") if key in config), None
    )
    if not isinstance(experts, int):
        return Check(
            Verdict.WARN,
            "model",
            f"{folder}: no routed experts",
            "expert parallelism has no effect",
        )
    if world_size > experts:
        return Check(
            Verdict.FAIL,
            "model",
            f"{experts} experts for {world_size} workers",
            f"use at most {experts} ranks (--ranks)",
        )
    share = f"{experts // world_size}" if experts % world_size == 0 else "an uneven number"
    return Check(Verdict.OK, "model", f"{folder}: {experts} experts, {share} per worker")


def check_plugin(entry_points: Sequence[str], patches: Mapping[str, bool] | str) -> Check:
    """Check the CPU plugin.

    Args:
        entry_points: Values registered for vLLM plugins.
        patches: Whether each patch is needed, by name; or the reason why the plugin failed.
    """
    if not any(value.startswith("serving.engine.cpu_plugin") for value in entry_points):
        return Check(
            Verdict.FAIL,
            "cpu plugin",
            "entry point not installed: vLLM does not load the plugin",
            "pip install --no-deps --editable .   (or make run)",
        )
    if isinstance(patches, str):
        return Check(Verdict.FAIL, "cpu plugin", patches, "make clean-venv run; see ADR 0004")
    active = [name for name, needed in patches.items() if needed]
    unneeded = [name for name, needed in patches.items() if not needed]
    parts = []
    if active:
        parts.append(f"patches {', '.join(active)}")
    if unneeded:
        parts.append(f"not needed: {', '.join(unneeded)}")
    return Check(Verdict.OK, "cpu plugin", "; ".join(parts) or "nothing to patch")


def check_exchange(mode: str, problem: str) -> Check:
    """Check how the ranks of a node will exchange tokens.

    Args:
        mode: ``engine.exchange``.
        problem: Why this machine cannot share memory between ranks; empty if it can.
    """
    if mode == "gloo":
        return Check(Verdict.OK, "exchange", "gloo (engine.exchange)")
    if not problem:
        return Check(Verdict.OK, "exchange", "shared memory between ranks of one node")
    if mode == "shared_memory":
        return Check(Verdict.FAIL, "exchange", problem, "set engine.exchange to auto or gloo")
    return Check(
        Verdict.WARN, "exchange", problem, "ranks exchange tokens over gloo, which is slower"
    )


def check_fabric(devices: Sequence[str], problem: str | None, memlock: str | None) -> Check:
    """Check the requirements of communication between ranks on several machines.

    Args:
        devices: Usable RDMA ports.
        problem: Reason why a rank would not start. None if it would start.
        memlock: Problem with the limit of locked memory. None if there is no problem.
    """
    seen = f"RDMA ports: {_few(devices)}" if devices else "no RDMA device; ranks use TCP"
    if problem is not None:
        return Check(Verdict.FAIL, "fabric", seen, problem)
    if devices and memlock is not None:
        return Check(Verdict.WARN, "fabric", seen, memlock)
    return Check(Verdict.OK, "fabric", seen)


def check_leftovers(*, running: str | None, stale: str | None) -> Check:
    """Check for earlier runs: ``running`` describes a live run, ``stale`` the remains of one."""
    if running is not None:
        return Check(Verdict.OK, "earlier runs", f"running now: {running}")
    if stale is not None:
        return Check(Verdict.WARN, "earlier runs", stale, "run moe-serving down to clean up")
    return Check(Verdict.OK, "earlier runs", "none left to clean up")


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
