"""The Pod Security level that a release's namespace can enforce, by the standards' rules."""

from typing import Any

import pytest
import yaml

from tests.helm.chart import PRESETS, pod_specs, render, values_of
from tests.helm.gpu import gpu
from tests.helm.test_node_weights import values as node_weights

BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def level(spec: dict[str, Any]) -> str:
    """Return the strictest of restricted, baseline and privileged that admits a pod."""
    contexts = [
        {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        for container in [*spec["containers"], *spec.get("initContainers", ())]
    ]
    kinds = {kind for volume in spec.get("volumes", ()) for kind in volume if kind != "name"}
    added = {name for c in contexts for name in c.get("capabilities", {}).get("add", ())}
    if (
        any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
        or "hostPath" in kinds
        or not added <= BASELINE_CAPABILITIES
        or any(context.get("privileged") for context in contexts)
        or any(context["seccompProfile"]["type"] == "Unconfined" for context in contexts)
    ):
        return "privileged"
    restricted = (
        kinds <= RESTRICTED_VOLUMES
        and added <= {"NET_BIND_SERVICE"}
        and all(
            context["allowPrivilegeEscalation"] is False
            and context["runAsNonRoot"] is True
            and context.get("runAsUser") != 0
            and context["capabilities"]["drop"] == ["ALL"]
            for context in contexts
        )
    )
    return "restricted" if restricted else "baseline"


def weakest(preset: str = "default", **values: Any) -> str:
    """Return the level that admits all pods of a release."""
    order = ["restricted", "baseline", "privileged"]
    return max(
        (level(spec) for spec in pod_specs(render(preset, **values)).values()), key=order.index
    )


@pytest.mark.parametrize("preset", ["default", *(p for p in PRESETS if p != "everything")])
def test_presets_need_no_right_but_for_their_volume(preset: str) -> None:
    on = {"fabricCheck": {"enabled": True}, "imagePrePull": {"enabled": True}}
    file = values_of(preset)
    given = yaml.safe_load(file.read_text("utf-8")) if file else {}
    on_nodes = given.get("model", {}).get("volume", {}).get("type") == "hostPath"
    assert weakest(preset, **on) == ("privileged" if on_nodes else "restricted")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(gpu({"rdma": {"resource": "rdma/ib"}}), "restricted", id="rdma"),
        pytest.param(
            gpu({"rdma": {"resource": "rdma/ib", "networks": "a"}}), "restricted", id="networks"
        ),
        pytest.param(
            gpu({"rdma": {"resource": "rdma/ib", "memlock": "root"}}), "privileged", id="root"
        ),
        pytest.param(
            gpu({"rdma": {"resource": "rdma/ib", "hostNetwork": True}}), "privileged", id="host"
        ),
        pytest.param(node_weights(), "privileged", id="host-path"),
        pytest.param(node_weights(prepareFolder=False), "privileged", id="prepared-host-path"),
    ],
)
def test_the_page_on_gpus_says_the_level(values: dict[str, Any], expected: str) -> None:
    assert weakest(**values) == expected
