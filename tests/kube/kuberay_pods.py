"""The pods that KubeRay creates from a RayCluster's templates.

Follows the recorded pods of KubeRay 1.7.0: names, labels, annotations, environment, the command
that starts Ray, probes, the init container that waits for the head, the head's shared memory.
"""

from decimal import Decimal
from typing import Any

from tests.kube.copies import copied

Item = dict[str, Any]

_AGENT = 52365
_WAIT = """
					SECONDS=0
					while true; do
						if (( SECONDS <= 120 )); then
							if ray health-check --address {address} > /dev/null 2>&1; then
								echo "GCS is ready."
								break
							fi
							echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
						else
							if ray health-check --address {address}; then
								echo "GCS is ready. Any error messages above can be safely ignored."
								break
							fi
							echo "$SECONDS seconds elapsed: Still waiting for GCS to be ready. For troubleshooting, refer to the FAQ at https://docs.ray.io/en/master/cluster/kubernetes/troubleshooting.html."
						fi
						sleep 5
					done
				"""  # noqa: E501  as recorded
_READY = "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success"
_SERVES = " && wget --tries 1 -T 10 -q -O- http://localhost:8000/-/healthz | grep success"


def head(cluster: Item, version: str, hashed: str) -> Item:
    """Return the head pod of a RayCluster whose specification has this hash."""
    spec = cluster["spec"]["headGroupSpec"]
    pod = _pod(cluster, spec, "head", "headgroup", serve="false")
    container = pod["spec"]["containers"][0]
    start = _start(container, spec["rayStartParams"], "")
    probe = _probe(_health(), timeout=5)
    crd = (cluster["metadata"].get("labels") or {}).get("ray.io/originated-from-crd", "RayCluster")
    container["env"] += [
        *_auth(cluster),
        *_environment(start, "127.0.0.1:6379"),
        _text(
            "RAY_USAGE_STATS_EXTRA_TAGS",
            f"kuberay_version={version};kuberay_crd={crd}",
        ),
        _text("RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "1"),
    ]
    container["livenessProbe"] = probe | {"initialDelaySeconds": 30, "failureThreshold": 120}
    container["readinessProbe"] = probe | {"initialDelaySeconds": 10, "failureThreshold": 10}
    if not any(m["mountPath"] == "/dev/shm" for m in container.get("volumeMounts", ())):
        container.setdefault("volumeMounts", []).append(
            {"mountPath": "/dev/shm", "name": "shared-mem"}
        )
        limits = (container.get("resources") or {}).get("limits") or {}
        memory = {"medium": "Memory"} | (
            {"sizeLimit": limits["memory"]} if "memory" in limits else {}
        )
        pod["spec"].setdefault("volumes", []).append({"name": "shared-mem", "emptyDir": memory})
    annotations = pod["metadata"].setdefault("annotations", {})
    annotations |= {
        "ray.io/ft-enabled": "false",
        "ray.io/kuberay-version": version,
        "ray.io/upgrade-strategy-recreate-hash": hashed,
    }
    return pod


def worker(cluster: Item, group: Item, index: int) -> Item:
    """Return a worker pod of a group; ``index`` is its replica's number."""
    name, space = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    service = f"{name}-head-svc"
    full = f"{service}.{space}.svc.cluster.local"
    pod = _pod(cluster, group, "worker", group["groupName"], serve="true")
    pod["metadata"]["labels"]["ray.io/worker-group-replica-index"] = str(index)
    container = pod["spec"]["containers"][0]
    start = _start(container, group["rayStartParams"] or {}, f"{full}:6379")
    container["env"] += [*_auth(cluster), _text("FQ_RAY_IP", full), _text("RAY_IP", service)]
    waiting = {
        key: copied(container[key])
        for key in ("env", "image", "imagePullPolicy", "securityContext", "volumeMounts")
        if key in container
    }
    small = {"cpu": "200m", "memory": "256Mi"}
    waiting |= {
        "name": "wait-gcs-ready",
        "command": ["/bin/bash", "-c", "--"],
        "args": [_WAIT.format(address=f"{full}:6379")],
        "resources": {"limits": small, "requests": dict(small)},
    }
    pod["spec"].setdefault("initContainers", []).append(waiting)
    container["env"] += [
        *_environment(start, f"{full}:6379"),
        _text("RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "1"),
    ]
    probe = _probe(_health(), timeout=2)
    container["livenessProbe"] = probe | {"initialDelaySeconds": 30, "failureThreshold": 120}
    command = {"exec": {"command": ["bash", "-c", _READY + _SERVES]}}
    ready = _probe(command, timeout=2)
    container["readinessProbe"] = ready | {"initialDelaySeconds": 10, "failureThreshold": 1}
    return pod


def _pod(cluster: Item, group: Item, kind: str, name: str, serve: str) -> Item:
    template, owner = copied(group["template"]), cluster["metadata"]
    metadata = template.get("metadata") or {}
    prefix = owner["name"] if kind == "head" else f"{owner['name']}-{name}"
    labels = (metadata.get("labels") or {}) | {
        "app.kubernetes.io/created-by": "kuberay-operator",
        "app.kubernetes.io/name": "kuberay",
        "ray.io/cluster": owner["name"],
        "ray.io/group": name,
        "ray.io/identifier": f"{owner['name']}-{kind}",
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": kind,
        "ray.io/serve": serve,
    }
    reference = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "name": owner["name"],
        "uid": owner["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    annotations = metadata.get("annotations")
    spec = template["spec"]
    spec["containers"][0].setdefault("env", [])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{prefix[:50]}-{kind}-".lower(),
            "namespace": owner["namespace"],
            "labels": labels,
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [reference],
        },
        "spec": spec,
    }


def _start(container: Item, given: dict[str, str], address: str) -> str:
    """Set the container's command to start Ray, and return it."""
    limits = (container.get("resources") or {}).get("limits") or {}
    params = {"dashboard-agent-listen-port": str(_AGENT), "metrics-export-port": "8080"} | given
    params["block"] = ""
    if address:
        params["address"] = address
    if "memory" in limits:
        params.setdefault("memory", _in_bytes(limits["memory"]))
    words = [
        f" --{key}={value} " if value else f" --{key} " for key, value in sorted(params.items())
    ]
    command = f"ray start {'' if address else '--head '}{''.join(words)}"
    container["command"] = ["/bin/bash", "-c", "--"]
    container["args"] = [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]
    return command


def _in_bytes(memory: str) -> str:
    number, power = memory.rstrip("KMGTPEi"), "KMGTPE".find(memory.rstrip("i")[-1:]) + 1
    base = 1024 if memory.endswith("i") else 1000
    return str(int(Decimal(number) * base**power))


def _auth(cluster: Item) -> list[Item]:
    options = cluster["spec"].get("authOptions") or {}
    if options.get("mode") != "token":
        return []
    name = options.get("secretName") or cluster["metadata"]["name"]
    source = {"secretKeyRef": {"name": name, "key": "auth_token"}}
    return [_text("RAY_AUTH_MODE", "token"), {"name": "RAY_AUTH_TOKEN", "valueFrom": source}]


def _environment(start: str, address: str) -> list[Item]:
    fields = {
        "RAY_CLUSTER_NAME": "metadata.labels['ray.io/cluster']",
        "RAY_CLUSTER_NAMESPACE": "metadata.namespace",
        "RAY_CLOUD_INSTANCE_ID": "metadata.name",
        "RAY_NODE_TYPE_NAME": "metadata.labels['ray.io/group']",
    }
    return [
        *(
            {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
            for name, path in fields.items()
        ),
        _text("KUBERAY_GEN_RAY_START_CMD", start),
        _text("RAY_PORT", "6379"),
        _text("RAY_timeout_ms_task_wait_for_death_info", "0"),
        _text("RAY_gcs_server_request_timeout_seconds", "5"),
        _text("RAY_SERVE_KV_TIMEOUT_S", "5"),
        _text("RAY_ADDRESS", address),
        _text("RAY_USAGE_STATS_KUBERAY_IN_USE", "1"),
    ]


def _text(name: str, value: str) -> Item:
    return {"name": name, "value": value}


def _health() -> Item:
    return {"httpGet": {"path": "/api/healthz", "port": _AGENT, "scheme": "HTTP"}}


def _probe(how: Item, timeout: int) -> Item:
    return {**how, "periodSeconds": 5, "successThreshold": 1, "timeoutSeconds": timeout}
