"""A release in a fake cluster, changed by a real Helm."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import CHART, HELMS, go_environment, values_of
from tests.kube import kuberay
from tests.kube.controllers import running, settle
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay
from tests.kube.server import KubeServer
from tests.kube.workloads import workloads

Object = dict[str, Any]
Fields = dict[tuple[str, ...], Any]
NAMESPACE = "prod"
_SERVERS_OWN = ("resourceVersion", "generation", "managedFields", "uid", "creationTimestamp")


class Refused(AssertionError):
    """Helm failed; the text is its output."""


class Cluster:
    """A fake API server with KubeRay, nodes and workloads, and Helm in front of it."""

    def __init__(self, helm: str, folder: Path):
        self.server = KubeServer(("default", NAMESPACE))
        self.operator = KubeRay()
        self.kubelet = Kubelet(kuberay.proxy_health(self.server))
        self.controllers = (self.operator, workloads, self.kubelet)
        self._program = HELMS[helm]
        if not self._program.is_file():
            pytest.skip(f"no Helm {helm}: .ci/tools could not fetch it")
        self._folder = folder

    @contextmanager
    def up(self) -> Iterator["Cluster"]:
        """Serve, with running controllers."""
        with self.server, running(self.server, *self.controllers):
            yield self

    def helm(self, command: str, name: str, *words: str, preset: str = "", **values: Any) -> str:
        """Run ``helm COMMAND NAME``; commands that render use ``values`` over those of the preset.

        Raises:
            Refused: it fails.
        """
        arguments = [str(self._program), command, name, *words, "--namespace", NAMESPACE]
        if command in {"install", "upgrade"}:
            arguments[3:3] = [str(CHART)]
            if preset:
                arguments += ["--values", str(values_of(preset))]
            arguments += ["--values", "-"]
        config = self.server.kubeconfig(self._folder / "kubeconfig")
        done = subprocess.run(
            arguments,
            input=json.dumps(values),
            env=go_environment() | {"HOME": str(self._folder), "KUBECONFIG": str(config)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Refused(f"helm {command} {' '.join(words)}: {done.stderr}{done.stdout}")
        return done.stdout

    def settle(self) -> None:
        """Wait until the controllers are idle."""
        settle(self.server, *self.controllers)

    def names(self) -> set[str]:
        """Return kind and name of all objects except namespaces."""
        return {
            f"{item['kind']} {item['metadata']['name']}"
            for item in self.server.store.everything()
            if item["kind"] != "Namespace"
        }

    def workers(self) -> set[str]:
        """Return the names of the pods of worker groups that are not being deleted."""
        return {
            pod["metadata"]["name"]
            for pod in self.server.items("pods", NAMESPACE)
            if pod["metadata"]["labels"].get("ray.io/node-type") == "worker"
            and "deletionTimestamp" not in pod["metadata"]
        }

    def manifest(self, name: str) -> list[Object]:
        """Return the objects of a release as stored by the server, without fields it adds."""
        found = []
        for item in self.server.store.everything():
            annotations = item["metadata"].get("annotations") or {}
            if annotations.get("meta.helm.sh/release-name") != name or _made(item):
                continue
            kept = {k: v for k, v in item["metadata"].items() if k not in _SERVERS_OWN}
            found.append({**{k: v for k, v in item.items() if k != "status"}, "metadata": kept})
        return found


def _made(item: Object) -> bool:
    """Whether a controller created it: KubeRay copies annotations."""
    return bool(item["metadata"].get("ownerReferences"))
