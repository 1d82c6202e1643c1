"""``kubectl port-forward`` to a router, with a real router at the other end.

The Deployment behind the Service is read from the API server, its ConfigMap and Secrets are
written to the paths at which it mounts them (in a folder of the test), and the router runs as its
container would: with the chart's settings, the page's keys and the page's certificate. Only the
addresses (loopback, free ports) and ``engine.kind: fake`` differ: no rank joins the router.
"""

import base64
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube.server import KubeServer
from tests.support import warm

START = 300.0
"""Timeout for a router to listen, seconds."""
_CONFIG = "/etc/moe-serving"


@dataclass(slots=True)
class Forwarded:
    """A running router in place of a Service."""

    process: warm.Started
    rest: int
    """Its port for REST."""

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def forward(server: KubeServer, namespace: str, service: str, port: int, folder: Path) -> Forwarded:
    """Start the router behind ``service``; return when it listens.

    Raises:
        LookupError: The Service or the port does not exist.
        TimeoutError: the router did not start; the message has its log.
    """
    found = server.get("services", service, namespace)
    if found is None:
        raise LookupError(f"services {service} not found in namespace {namespace}")
    if port not in [item["port"] for item in found["spec"]["ports"]]:
        raise LookupError(f"service {service} does not have a service port {port}")
    pod = _pod_of(server, namespace, found["spec"]["selector"])
    mounted = _mount(server, namespace, pod, folder)
    ports, log = folder / "ports.json", folder / "router.log"
    arguments = [word.replace(_CONFIG, str(mounted)) for word in pod["containers"][0]["args"]]
    changes = ["engine.kind=fake", "router.host=127.0.0.1", "router.join_host=127.0.0.1"]
    with log.open("wb") as out:
        process = warm.start(
            [
                "-m", "serving", *arguments, "--ports-file", str(ports),
                "--port", "0", "--grpc-port", "0", "--join-port", "0",
                *(word for change in changes for word in ("--set", change)),
            ],
            log=out,
        )  # fmt: skip
    deadline = time.monotonic() + START
    while not ports.exists():
        if process.poll() is not None or time.monotonic() >= deadline:
            process.kill()
            raise TimeoutError(f"the router did not start: {log.read_text('utf-8')[-3000:]}")
        time.sleep(0.05)
    addresses = json.loads(ports.read_text("utf-8"))
    return Forwarded(process, int(addresses["rest"].rpartition(":")[2]))


def _pod_of(server: KubeServer, namespace: str, selector: dict[str, str]) -> dict[str, Any]:
    """Return the pod specification of the Deployment whose pods a Service selects."""
    for deployment in server.items("deployments", namespace):
        template = deployment["spec"]["template"]
        if selector.items() <= template["metadata"]["labels"].items():
            spec: dict[str, Any] = template["spec"]
            return spec
    raise LookupError(f"no Deployment has pods with {selector}")


def _mount(server: KubeServer, namespace: str, pod: dict[str, Any], folder: Path) -> Path:
    """Write what the first container mounts; return the folder that stands for ``_CONFIG``."""
    root = folder / "mounted"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in pod["containers"][0]["volumeMounts"]:
        content = _content(server, namespace, volumes[mount["name"]])
        if content is None:
            continue
        target = root / mount["mountPath"].removeprefix(f"{_CONFIG}/")
        target.mkdir(parents=True)
        for name, data in content.items():
            # Settings contain the paths of files in the pod.
            (target / name).write_bytes(data.replace(_CONFIG.encode(), str(root).encode()))
    return root


def _content(server: KubeServer, namespace: str, volume: dict[str, Any]) -> dict[str, bytes] | None:
    """Return a volume's files; ``None`` if it is not a Secret or a ConfigMap."""
    if "secret" in volume:
        kind, name, items = "secrets", volume["secret"]["secretName"], volume["secret"].get("items")
    elif "configMap" in volume:
        kind, name, items = "configmaps", volume["configMap"]["name"], None
    else:
        return None
    found = server.get(kind, name, namespace)
    if found is None:
        raise LookupError(f"MountVolume.SetUp failed: {kind} {name} not found")
    data = {
        key: base64.b64decode(value) if kind == "secrets" else value.encode()
        for key, value in (found.get("data") or {}).items()
    }
    if items is None:
        return data
    missing = [item["key"] for item in items if item["key"] not in data]
    if missing:
        raise LookupError(f"references non-existent secret key: {missing} in {name}")
    return {item["path"]: data[item["key"]] for item in items}
