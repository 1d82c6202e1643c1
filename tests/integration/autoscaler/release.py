"""A release of the chart with autoscaler processes, and fakes of everything around them.

API server, KubeRay operator, kubelet, Ray Serve and router are fakes; Helm renders the permissions
and settings of the chart, and the autoscalers are the real command.
"""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import httpx
import yaml

from tests.helm.chart import find, render
from tests.integration.autoscaler.http_fake import HttpFake
from tests.kube import rbac
from tests.kube.api import Options, Place
from tests.kube.controllers import running
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay
from tests.kube.server import KubeServer
from tests.support import warm
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parents[3]
SPACE, NAME, POOL = "prod", "serve-moe-serving", "cpu"
APP = f"{NAME}-{POOL}"
EACH = 2
"""Pods of a group, and ranks."""
LEASE_SECONDS = 9.0
_KINDS = (
    "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Lease",
    "PodDisruptionBudget", "RayService",
)  # fmt: skip


class Ray(HttpFake):
    """Ray's dashboard and a router's /fleet.

    Groups have a name, the addresses of their pods, and whether they joined the router.
    """

    def __init__(self):
        self.asked = EACH
        """Ranks."""
        self.groups: dict[str, tuple[list[str], bool]] = {}
        super().__init__()

    def answer(self, path, sent):
        if sent is not None:
            self.asked = sent["target_num_replicas"]
            return 200, {}
        if path == "/fleet":
            return 200, {"groups": [*self._joined()], "inflight_requests": 0}
        replicas = [
            {
                "replica_id": f"{name}-{rank}",
                "state": "RUNNING" if joined else "STARTING",
                "node_ip": address,
            }
            for name, (addresses, joined) in self.groups.items()
            for rank, address in enumerate(addresses)
        ]
        ranks = {"target_num_replicas": self.asked, "replicas": replicas}
        return 200, {"applications": {APP: {"status": "RUNNING", "deployments": {"ranks": ranks}}}}

    def _joined(self):
        for name, (addresses, joined) in self.groups.items():
            if joined:
                ranks = [{"node": address, "inflight_requests": 0} for address in addresses]
                yield {
                    "group_id": name,
                    "state": "ready",
                    "since_unix_seconds": 1.0,
                    "ranks": ranks,
                    "app": f"cluster/{APP}",
                }


class Autoscaler:
    """``moe-serving autoscaler run`` with the settings and permissions of the release."""

    def __init__(self, folder: Path, settings: Path, kubeconfig: Path):
        self.log = folder / f"{settings.stem}.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KUBECONFIG": str(kubeconfig)}
        with self.log.open("wb") as out:
            self.process = warm.start(
                ["-m", "serving", "autoscaler", "run", "--config", str(settings)],
                log=out,
                environment=environment,
            )
        self.url = (
            f"http://127.0.0.1:{yaml.safe_load(settings.read_text())['autoscaler']['metrics_port']}"
        )

    def metric(self, name):
        """Return the value of a metric; None if the process does not respond yet."""
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE, trust_env=False).text
        except httpx.TransportError:
            return None
        lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[1]) if lines else None

    def watches(self):
        """Return whether it watches nodes and pods."""
        kinds = [f'moe_autoscaler_watching{{kind="{kind}"}}' for kind in ("nodes", "pods")]
        return all(self.metric(kind) == 1 for kind in kinds)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self):
        """Stop it as the kubelet does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


class Release:
    """The release and its fakes; ``with Release(tmp_path) as release:``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.objects = render(
            "pocket-r1-cpu",
            autoscaler={
                "enabled": True,
                "maxGroups": 8,
                "prometheusUrl": "http://127.0.0.1:1",
                "existingSecret": "key",
                "settings": {"selector": 'job="routers"'},
            },
            ray={"auth": {"existingSecret": "ray"}},
        )
        self.server = KubeServer(("default", SPACE))
        self.ray = Ray()
        self.operator, self.kubelet = KubeRay(), Kubelet()
        self._stack = ExitStack()

    def __enter__(self):
        with ExitStack() as stack:  # started processes also end if a later one does not start
            stack.callback(self.ray.close)
            stack.enter_context(self.server)
            self.apply()
            stack.enter_context(running(self.server, self.operator, self.kubelet))
            wait_until(self.active, "an active RayCluster")
            wait_until(lambda: len(self.alive()) == EACH, "the chart's pods")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def apply(self):
        """Install or upgrade the objects that concern the autoscaler, as Helm 4 does."""
        for kind in _KINDS:
            for item in self.objects:
                if item["kind"] == kind:
                    found = self.server.store.kinds.of(item)
                    place = Place(
                        found, item["metadata"]["name"], SPACE if found.namespaced else ""
                    )
                    self.server.api.apply(place, item, Options("helm"))

    def start(self, number=0, **scaling):
        """Start an autoscaler."""
        name = f"{NAME}-autoscaler"
        token = rbac.service_account_token(SPACE, name)
        kubeconfig = self.server.kubeconfig(self.folder / "kubeconfig", token=token)
        text = find(self.objects, "ConfigMap", "-settings")["data"]["autoscaler.yaml"]
        settings = yaml.safe_load(text)
        own = settings["autoscaler"]
        own.pop("api_key_file", None)
        own.pop("dashboard_token_file", None)
        own |= {
            "routers": [self.ray.url],
            "drain_addresses": ["127.0.0.1:1"],
            "drain_timeout": 0.1,
            "dashboard_url": self.ray.url,
            "metrics_host": "127.0.0.1",
            "metrics_port": held_port(),
            "interval": 0.2,
            "min_groups": 0,
            "max_groups": 8,
        } | scaling
        own["kubernetes"] |= {
            "lease_seconds": LEASE_SECONDS, "watch_timeout": 5.0,
        }  # fmt: skip
        file = self.folder / f"autoscaler-{number}.yaml"
        file.write_text(json.dumps(settings), "utf-8")
        made = Autoscaler(self.folder, file, kubeconfig)
        self._stack.callback(made.kill)
        return made

    # -- state -----------------------------------------------------------------------------------

    def active(self):
        status = self.server.get("rayservices", NAME, SPACE).get("status") or {}
        return (status.get("activeServiceStatus") or {}).get("rayClusterName")

    def worker_group(self):
        [group] = self.server.get("rayclusters", self.active(), SPACE)["spec"]["workerGroupSpecs"]
        return group

    def held(self):
        """Return the replicas in the RayService."""
        config = self.server.get("rayservices", NAME, SPACE)["spec"]["rayClusterConfig"]
        return config["workerGroupSpecs"][0]["replicas"]

    def alive(self):
        """Return name and address of the running workers that are not being deleted."""
        return {
            pod["metadata"]["name"]: pod["status"]["podIP"]
            for pod in self.server.items("pods", SPACE)
            if pod["metadata"]["labels"].get("ray.io/node-type") == "worker"
            and "deletionTimestamp" not in pod["metadata"]
            and (pod.get("status") or {}).get("podIP")
        }

    def _lease_name(self):
        text = find(self.objects, "ConfigMap", "-settings")["data"]["autoscaler.yaml"]
        return yaml.safe_load(text)["autoscaler"]["kubernetes"]["lease"]

    def lease(self):
        """Return the spec of the autoscaler's Lease; empty before there is one."""
        found = self.server.get("leases", self._lease_name(), SPACE) or {}
        return found.get("spec") or {}

    def shorten_lease(self):
        """Let the lease of a killed leader expire at once."""
        self.server.patch(
            "leases", self._lease_name(), {"spec": {"leaseDurationSeconds": 1}}, SPACE
        )

    def leader(self, *autoscalers):
        """Return the autoscaler that holds the Lease and reports itself as leader, or None."""
        holder = self.lease().get("holderIdentity") or ""
        for one in autoscalers:
            if holder.endswith(f"-{one.process.pid}") and one.metric("moe_autoscaler_leader") == 1:
                return one
        return None

    def scaled(self, groups):
        """Request groups from Ray Serve and wait until their pods exist."""
        self.ray.asked = groups * EACH
        wait_until(
            lambda: self.worker_group()["replicas"] == groups * EACH, f"{groups} groups of pods"
        )
        wait_until(lambda: len(self.alive()) == groups * EACH, f"{groups} groups that run")
