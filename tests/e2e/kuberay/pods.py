"""Start commands, environment and probes that KubeRay gives to a RayService's pods.

The literal texts are those of pods that operator 1.7.0 created from this chart on Kubernetes
1.36.2; the older head probe is from the operator's source (1.5 and 1.6, Ray before 2.53).
``test_kuberay_pods`` compares what is computed here with the recorded texts.
"""

from collections.abc import Mapping
from typing import Any

WORKER_READINESS = (
    "bash",
    "-c",
    (
        "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz"
        " | grep success && wget --tries 1 -T 10 -q -O- http://localhost:8000/-/healthz"
        " | grep success"
    ),
)
"""A worker pod's ``readinessProbe.exec.command``."""
OLDER_HEAD_HEALTH = (
    "bash",
    "-c",
    (
        "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz"
        " | grep success && wget --tries 1 -T 10 -q -O- http://localhost:8265/api/gcs_healthz"
        " | grep success"
    ),
)
"""A head's readiness and liveness command where the operator does not use ``httpGet``."""
OLDER_WORKER_LIVENESS = (
    "bash",
    "-c",
    "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success",
)
"""The same for a worker's liveness."""
HTTP_GET = (52365, "/api/healthz")
"""Port and path of ``httpGet``: liveness of workers, liveness and readiness of the head."""
HEAD_SERVE_HEALTH = (8000, "/-/healthz")
"""The operator's own request to the head's proxy at each reconciliation."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_PORT": "6379",
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
    "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
}
"""Variables that the operator adds to all Ray containers, except names of pods."""

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def start_command(pod: Mapping[str, Any], *, head: str | None = None) -> str:
    """Return the shell line that starts Ray in a pod, as the operator writes it.

    Args:
        pod: ``headGroupSpec`` or an entry of ``workerGroupSpecs``.
        head: address of the head, host and port; none: the pod is the head.
    """
    container = pod["template"]["spec"]["containers"][0]
    parameters = {
        "block": "true",
        "dashboard-agent-listen-port": "52365",
        "memory": str(_bytes(container["resources"]["limits"]["memory"])),
        "metrics-export-port": "8080",
        **pod["rayStartParams"],
    }
    if head is not None:
        parameters["address"] = head
    words = (
        f" --{key} " if value == "true" else f" --{key}={value} "
        for key, value in sorted(parameters.items())
    )
    role = "ray start --head " if head is None else "ray start "
    return "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; " + role + "".join(words)


def environment(pod: Mapping[str, Any], token: str, cluster: str) -> dict[str, str]:
    """Return a Ray container's environment: the chart's variables and the operator's."""
    container = pod["template"]["spec"]["containers"][0]
    variables = {item["name"]: item["value"] for item in container["env"]}
    return {
        **variables,
        **ENVIRONMENT,
        "RAY_AUTH_TOKEN": token,
        "RAY_CLUSTER_NAME": cluster,
    }


def _bytes(quantity: str) -> int:
    """Convert a memory quantity with a binary suffix to bytes."""
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]
