"""Environment of the commands: the fake API server, and the programs on the PATH."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.helm.chart import go_environment
from tests.kube import objects
from tests.kube.controllers import running
from tests.kube.kinds import Kind, custom_kind
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay, proxy_health
from tests.kube.server import KubeServer
from tests.kube.workloads import workloads
from tests.support import warm

TOOLS = {
    "kubectl": ROOT / ".tools" / "kubectl" / "kubectl",
    "helm": ROOT / ".tools" / "helm-4" / "helm",
}


_MISSING = [name for name, path in TOOLS.items() if not path.is_file()]
needs_tools = pytest.mark.skipif(
    bool(_MISSING), reason=f".ci/tools could not download {', '.join(_MISSING)}"
)


@contextmanager
def empty_cluster() -> Iterator[KubeServer]:
    """Run an API server with KubeRay, kubelets and the controllers that a release needs."""
    with KubeServer() as server:
        for kind in _cert_manager():
            server.store.kinds.add(kind)
        kubelet = Kubelet(ready=proxy_health(server))
        with running(server, workloads, KubeRay(), kubelet, nodes):
            yield server


def nodes(server: KubeServer) -> None:
    """A controller that creates a Node for the ``nodeName`` of each pod."""
    for pod in server.items("pods"):
        name = pod["spec"].get("nodeName")
        if name and server.get("nodes", name, "") is None:
            server.create(objects.node(name))


def workplace(folder: Path, server: KubeServer) -> dict[str, str]:
    """Create a folder in which the commands run; return their environment.

    The folder has links to the files that the pages use by relative path, and is the home folder.
    """
    programs = folder / "bin"
    programs.mkdir()
    for name, path in TOOLS.items():
        (programs / name).symlink_to(path)
    command = programs / "moe-serving"
    command.write_text(
        f"#!/bin/sh\nexec env PYTHONPATH='{ROOT}' {warm.command()} -m serving \"$@\"\n", "utf-8"
    )
    command.chmod(0o755)
    for name in ("deploy", "helm", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    return go_environment() | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "KUBECONFIG": str(server.kubeconfig(folder / "kubeconfig")),
        "MOE_SERVING_STATE_DIR": str(folder / "state"),
    }


def _cert_manager() -> Iterator[Kind]:
    """Yield cert-manager's kinds, with the fields of its API reference that are used here."""
    text, truth = {"type": "string"}, {"type": "boolean"}
    texts = {"type": "array", "items": text}
    reference = _closed({"name": text, "kind": text, "group": text}, "name")
    private = _closed({"algorithm": text, "size": {"type": "integer"}, "rotationPolicy": text})
    certificate = _closed(
        {
            "secretName": text, "issuerRef": reference, "commonName": text, "dnsNames": texts,
            "duration": text, "renewBefore": text, "isCA": truth, "usages": texts,
            "privateKey": private,
        },
        "secretName", "issuerRef",
    )  # fmt: skip
    issuer = _closed({"selfSigned": {"type": "object"}, "ca": _closed({"secretName": text})})
    for kind, spec in (
        ("Certificate", certificate),
        ("Issuer", issuer),
    ):
        schema = _closed({"apiVersion": text, "kind": text, "metadata": {}, "spec": spec}, "spec")
        yield custom_kind("cert-manager.io/v1", kind, schema)


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the schema of an object that has only these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
