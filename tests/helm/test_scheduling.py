"""Annotations for batch schedulers, images on nodes, and DNS of pods."""

import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.helm.chart import PRESETS, Refused, find, pod_specs, render, workers
from tests.helm.gpu import gpu
from tests.support.waiting import PATIENCE

ALL = ["default", *PRESETS]
SCHEDULING: dict[str, Any] = {
    "schedulerName": "volcano",
    "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
    "annotations": {"example.com/note": "a"},
    "podLabels": {"example.com/tier": "b"},
    "podAnnotations": {"kueue.x-k8s.io/podset-required-topology": "example.com/block"},
}


def test_queues_are_named_on_the_rayservice() -> None:
    objects = render(scheduling=SCHEDULING)
    service = find(objects, "RayService")
    assert SCHEDULING["labels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["annotations"] == SCHEDULING["annotations"]
    cluster = service["spec"]["rayClusterConfig"]
    head, (ranks,) = cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"]
    for template in (head, ranks["template"]):
        assert template["spec"]["schedulerName"] == "volcano"
        assert "kueue.x-k8s.io/queue-name" not in template["metadata"]["labels"]
    ranks = ranks["template"]["metadata"]
    assert ranks["labels"]["example.com/tier"] == "b"
    assert SCHEDULING["podAnnotations"].items() <= ranks["annotations"].items()
    assert "example.com/tier" not in head["metadata"]["labels"]


def test_nothing_else_is_labelled() -> None:
    before, after = render(), render(scheduling=SCHEDULING)
    for old, new in zip(before, after, strict=True):
        assert (old == new) is (new["kind"] != "RayService")


def test_by_default_schedulers_are_told_nothing() -> None:
    service = find(render(), "RayService")
    assert "annotations" not in service["metadata"]
    for spec in pod_specs(render()).values():
        assert "schedulerName" not in spec


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("labels", "app.kubernetes.io/instance"),
        ("labels", "moe-serving/pool"),
        ("podLabels", "app.kubernetes.io/component"),
        ("podLabels", "moe-serving/group-slot"),
        ("podLabels", "ray.io/group"),
        ("podAnnotations", "checksum/settings"),
        ("podAnnotations", "k8s.v1.cni.cncf.io/networks"),
        ("annotations", "meta.helm.sh/release-name"),
    ],
)
def test_what_others_set_is_refused(field: str, key: str) -> None:
    with pytest.raises(Refused) as refused:
        render(scheduling={field: {key: "x"}})
    assert f"scheduling.{field}: {key}" in str(refused.value)


def test_a_label_is_given_once() -> None:
    with pytest.raises(Refused, match="commonLabels"):
        render(commonLabels={"team": "a"}, scheduling={"podLabels": {"team": "b"}})


# Images on the nodes.


def prepull(objects: list[dict[str, Any]], pool: str) -> dict[str, Any]:
    return find(objects, "DaemonSet", f"-prepull-{pool}")


def test_the_engine_image_is_kept_on_the_pools_nodes() -> None:
    pool = {"nodeSelector": {"gpu": "h200"}, "tolerations": [{"operator": "Exists"}]}
    on = {"enabled": True, "extraImages": ["registry.example.com/engine-gpu:2"]}
    objects = render(**gpu(pool), imagePrePull=on, image={"pullSecrets": ["registry"]})
    spec = prepull(objects, "h200")["spec"]["template"]["spec"]
    ranks = workers(objects)["h200"]["template"]["spec"]
    assert [c["image"] for c in spec["containers"]] == [
        ranks["containers"][0]["image"],
        "registry.example.com/engine-gpu:2",
    ]
    for key in ("nodeSelector", "tolerations", "imagePullSecrets"):
        assert spec[key] == ranks[key]
    for container in spec["containers"]:
        assert set(container["resources"]["limits"]) == {"memory"}


def test_no_image_is_pulled_unless_asked() -> None:
    assert not [item for item in render() if item["kind"] == "DaemonSet"]


def test_a_pod_that_only_waits_ends_when_it_is_told() -> None:
    objects = render(imagePrePull={"enabled": True})
    (container,) = prepull(objects, "cpu")["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "python"
    # In its own namespaces it is process 1, which ignores signals without a handler.
    code = arguments[1].replace("signal.pause()", "print(flush=True); signal.pause()")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=PATIENCE) == 0


# DNS.


@pytest.mark.parametrize("preset", ALL)
def test_every_pod_gets_the_dns_configuration(preset: str) -> None:
    config = {"nameservers": ["169.254.20.10"], "options": [{"name": "ndots", "value": "2"}]}
    specs = pod_specs(render(preset, dnsPolicy="None", dnsConfig=config))
    for spec in specs.values():
        assert spec["dnsPolicy"] == "None"
        assert spec["dnsConfig"] == config


@pytest.mark.parametrize("given", ["", "ClusterFirst", "ClusterFirstWithHostNet", "Default"])
def test_on_the_hosts_network_cluster_names_are_found(given: str) -> None:
    pool = {"rdma": {"resource": "rdma/ib", "hostNetwork": True}}
    specs = pod_specs(render(**gpu(pool), dnsPolicy=given, fabricCheck={"enabled": True}))
    host = {"pool h200", "serve-moe-serving-fabric-h200"}
    assert {name for name, spec in specs.items() if spec.get("hostNetwork")} == host
    for name, spec in specs.items():
        if name in host and given in {"", "ClusterFirst"}:
            assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
        else:
            assert spec.get("dnsPolicy", "") == given


def test_the_policy_opens_dns_where_it_is_answered() -> None:
    policy = find(render(), "NetworkPolicy", "-dns")["spec"]["egress"]
    (rule,) = policy
    # NodeLocal DNSCache runs on the host's network: no pod selector matches it.
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"]
    assert rule["ports"] == [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]
    shift = {
        "dns": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}
        ],
        "dnsPorts": [5353],
    }
    objects = render(networkPolicy=shift, fabricCheck={"enabled": True})
    for name in ("-dns", "-fabric-check"):
        rules = [
            rule
            for rule in find(objects, "NetworkPolicy", name)["spec"]["egress"]
            if rule["to"] == shift["dns"]
        ]
        assert [rule["ports"] for rule in rules] == [
            [{"protocol": p, "port": 5353} for p in ("UDP", "TCP")]
        ]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        pytest.param({"dnsPolicy": "None"}, "dnsConfig.nameservers", id="no-server"),
        pytest.param({"dnsPolicy": "Cluster"}, "dnsPolicy", id="no-policy"),
        pytest.param({"dnsConfig": {"servers": []}}, "servers", id="unknown"),
        pytest.param({"networkPolicy": {"dnsPorts": []}}, "dnsPorts", id="no-port"),
        pytest.param({"scheduling": {"podLabels": {"a": 1}}}, "podLabels", id="number"),
        pytest.param({"scheduling": {"queue": "a"}}, "queue", id="unknown-scheduling"),
    ],
)
def test_refusals(values: dict[str, Any], part: str) -> None:
    with pytest.raises(Refused) as refused:
        render(**values)
    assert part in str(refused.value)
