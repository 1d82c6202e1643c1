"""The chart, rendered by a real Helm; each set of values is rendered once per process."""

import functools
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "moe-serving"
HELMS = {name: ROOT / ".tools" / f"helm-{name}" / "helm" for name in ("3", "4")}
PRESETS = {
    file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*.yaml"))
}
"""Every values file in the chart's ci folder: the presets, and one with everything enabled."""

Object = dict[str, Any]


def go_environment() -> dict[str, str]:
    """Return the environment variables that Helm and kubectl need.

    ``GOGC`` sets how often they collect garbage; ``make test`` sets it.
    """
    return {name: os.environ[name] for name in ("PATH", "GOGC") if name in os.environ}


class Refused(Exception):
    """Helm rejected the values; the text is its message."""


def values_of(preset: str) -> Path | None:
    """Return the values file of ``preset``; "default" has none."""
    return None if preset == "default" else PRESETS[preset]


@functools.cache
def rendered_text(
    preset: str = "default",
    changes: str = "{}",
    helm: str = "4",
    command: str = "template",
    release: str = "serve",
    namespace: str = "prod",
) -> str:
    """Return what Helm renders for ``preset`` with ``changes`` (JSON) over it.

    Raises:
        Refused: Helm rejects the values.
    """
    program = HELMS[helm]
    if not program.is_file():
        pytest.skip(f"no Helm {helm}: .ci/tools could not fetch it")
    arguments = [str(program), command]
    if command == "template":
        arguments += [release, str(CHART), "--namespace", namespace]
    else:
        arguments += [str(CHART)]
    file = values_of(preset)
    if file is not None:
        arguments += ["--values", str(file)]
    # Standard input as a values file: JSON is YAML.
    done = subprocess.run(
        [*arguments, "--values", "-"], input=changes, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(preset: str = "default", helm: str = "4", **changes: Any) -> list[Object]:
    """Return the objects for ``preset`` with ``changes`` over its values; a copy for the caller."""
    # Unpickling a copy takes a fraction of the time of parsing YAML.
    loaded: list[Object] = pickle.loads(_parsed(preset, json.dumps(changes, sort_keys=True), helm))
    return loaded


@functools.cache
def _parsed(preset: str, changes: str, helm: str) -> bytes:
    text = rendered_text(preset, changes, helm)
    return pickle.dumps([i for i in yaml.load_all(text, yaml.CSafeLoader) if i is not None])


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the only object of ``kind`` (and ``name``, without the release's prefix)."""
    found = [
        item
        for item in objects
        if item["kind"] == kind
        and (name is None or item["metadata"]["name"] == f"serve-moe-serving{name}")
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} and name {name}"
    return found[0]


def settings_of(objects: list[Object]) -> dict[str, Any]:
    """Return the routers' settings file, parsed."""
    text = find(objects, "ConfigMap", "-settings")["data"]["settings.yaml"]
    loaded: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return loaded


def serve_config(objects: list[Object]) -> dict[str, Any]:
    """Return the RayService's serveConfigV2, parsed."""
    loaded: dict[str, Any] = yaml.load(
        find(objects, "RayService")["spec"]["serveConfigV2"], yaml.CSafeLoader
    )
    return loaded


def workers(objects: list[Object]) -> dict[str, Object]:
    """Return the worker groups by name."""
    specs = find(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return {spec["groupName"]: spec for spec in specs}


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Return every pod specification in ``objects``, by its purpose."""
    found: dict[str, Object] = {}
    for item in objects:
        if item["kind"] in {"Deployment", "Job", "DaemonSet"}:
            found[item["metadata"]["name"]] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            found[item["metadata"]["name"]] = item["spec"]
        elif item["kind"] == "RayService":
            cluster = item["spec"]["rayClusterConfig"]
            found["head"] = cluster["headGroupSpec"]["template"]["spec"]
            for group in cluster["workerGroupSpecs"]:
                found[f"pool {group['groupName']}"] = group["template"]["spec"]
    return found
