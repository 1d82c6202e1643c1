"""Values that the chart rejects, with messages that state what to change."""

import json
from typing import Any

import pytest

from tests.helm.chart import Refused, render, rendered_text

GPU: dict[str, Any] = {
    "name": "h200",
    "accelerator": "gpu",
    "gpusPerNode": 8,
    "resources": {"cpu": "8", "memory": "64Gi"},
}
CPU: dict[str, Any] = {
    "name": "cpu",
    "accelerator": "cpu",
    "resources": {"cpu": "1", "memory": "4Gi"},
}
MODEL = {"attentionHeads": 128, "keyValueHeads": 128, "routedExperts": 256}
SCALER: dict[str, Any] = {
    "enabled": True,
    "prometheusUrl": "http://prometheus:9090",
    "maxGroups": 2,
    "settings": {"selector": 'job="moe-routers"'},
}
STREAM: dict[str, Any] = {
    "path": "/models/m",
    "volume": {"type": "claim", "claimName": "c"},
    "stream": {"url": "s3://bucket/m"},
}
DOWNLOAD = {"enabled": True, "repository": "o/m", "revision": "0" * 40}


def gpu(model: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """Return values with one GPU pool; ``pool`` adds to the pool."""
    pool = GPU | values.pop("pool", {})
    return {"pools": [pool], "model": MODEL | (model or {})} | values


def cpu(**pool: Any) -> dict[str, Any]:
    """Return values with one CPU pool."""
    return {"pools": [CPU | pool]}


# Values that cannot be placed or would not work, and parts of the message.
SENSELESS = [
    pytest.param(
        gpu(parallelism={"data": 12}),
        ["pods of 8 ranks", "data to a multiple of 8"],
        id="data-no-multiple-of-a-pod",
    ),
    pytest.param(
        gpu(parallelism={"data": 16, "ranksPerPod": 16}),
        ["16 ranks per pod", "a node has 8", "ranksPerPod to 8"],
        id="more-local-ranks-than-gpus",
    ),
    pytest.param(
        gpu(parallelism={"data": 6, "ranksPerPod": 3}),
        ["leave 2 of a node's 8 GPUs unused"],
        id="gpus-left-over",
    ),
    pytest.param(
        gpu(parallelism={"data": 2, "tensor": 16, "replicateKv": True}),
        ["tensor 16 needs that many GPUs on one node", "gpusPerNode is 8"],
        id="rank-wider-than-a-node",
    ),
    pytest.param(
        gpu(parallelism={"data": 2, "tensor": 8}),
        ["MLA", "tensor to 1", "data to 16", "replicateKv"],
        id="mla-copies-its-cache",
    ),
    pytest.param(
        gpu({"attention": "gqa", "keyValueHeads": 4}, parallelism={"data": 1, "tensor": 8}),
        ["exceeds the model's 4 key-value heads"],
        id="gqa-copies-its-cache",
    ),
    pytest.param(
        gpu(parallelism={"data": 1, "tensor": 3, "replicateKv": True}),
        ["does not divide the model's 128 attention heads"],
        id="heads-not-divided",
    ),
    pytest.param(
        gpu({"routedExperts": 8}, parallelism={"data": 16}),
        ["16 workers for 8 routed experts"],
        id="more-workers-than-experts",
    ),
    pytest.param(
        gpu(parallelism={"data": 16, "experts": 8}),
        ["experts is 8", "16 workers", "set it to 16"],
        id="experts-other-than-workers",
    ),
    pytest.param(cpu(accelerator="gpu"), ["pools.cpu", "set gpusPerNode"], id="no-number-of-gpus"),
    pytest.param(cpu(gpusPerNode=8), ["requires accelerator: gpu"], id="gpus-on-cpus"),
    pytest.param(
        cpu(rdma={"resource": "rdma/ib"}), ["rdma requires accelerator: gpu"], id="rdma-on-cpus"
    ),
    pytest.param(
        gpu(parallelism={"data": 16}, engine={"allToAll": "deepep_low_latency"}),
        ["requires RDMA", "spans 2 pods", "rdma.resource", "allgather_reducescatter"],
        id="deepep-without-rdma",
    ),
    pytest.param(
        {"engine": {"allToAll": "deepep_low_latency"}}, ["requires GPUs"], id="deepep-on-cpus"
    ),
    pytest.param(
        gpu(parallelism={"data": 8}, pool={"placement": "strict_spread"}),
        ["one rank per node", "ranksPerPod to 1"],
        id="strict-spread-in-one-pod",
    ),
    pytest.param(
        gpu(parallelism={"data": 8}, pool={"spot": True}), ["spot requires cloud"], id="spot-where"
    ),
    pytest.param(cpu(groups=3, maxGroups=2), ["maxGroups 2 is less"], id="max-below-groups"),
    pytest.param(cpu(minAvailablePods=3), ["minAvailablePods 3 exceeds the pool's 2"], id="budget"),
    pytest.param(cpu(name="router"), ["already used by another part"], id="pool-named-as-a-part"),
    pytest.param(
        {"commonLabels": {"app.kubernetes.io/instance": "x"}},
        ["commonLabels", "app.kubernetes.io/instance is set by the chart"],
        id="own-label",
    ),
    pytest.param(
        {"commonAnnotations": {"helm.sh/hook": "x"}},
        ["commonAnnotations", "helm.sh/hook is set by"],
        id="own-annotation",
    ),
    pytest.param({"pools": [CPU, CPU]}, ["two pools are named cpu"], id="pools-of-one-name"),
    pytest.param({"pools": [CPU, GPU]}, ["install two releases"], id="cpu-and-gpu"),
    pytest.param(cpu(groups=0), ["no pool has groups", "readyWhenParked"], id="no-group"),
    pytest.param(
        {"model": {"volume": {"type": "claim"}, "path": "/models/x"}}, ["claimName"], id="no-claim"
    ),
    pytest.param(
        {"model": {"volume": {"type": "hostPath"}, "path": "/models/x"}},
        ["requires hostPath"],
        id="no-host-path",
    ),
    pytest.param(
        {"model": {"volume": {"type": "claim", "claimName": "w"}}}, ["model.path"], id="no-path"
    ),
    pytest.param(
        {"model": {"download": {"enabled": True}}}, ["volume.type to claim"], id="download-where"
    ),
    pytest.param(
        {
            "model": {
                "path": "/models/x",
                "volume": {"type": "claim", "claimName": "w"},
                "download": {"enabled": True, "repository": "a/b"},
            }
        },
        ["repository and revision"],
        id="download-what",
    ),
    pytest.param({"model": {"path": "/models/x"}}, ["only pocket-r1"], id="path-in-the-image"),
    pytest.param(
        {"model": {"path": "/x", "volume": {"type": "claim", "claimName": "w"}}},
        ["not under model.volume.mountPath"],
        id="path-outside",
    ),
    pytest.param(
        {"router": {"ports": {"rest": 50051}}}, ["must differ"], id="two-ports-of-one-number"
    ),
    pytest.param(
        {"router": {"terminationGracePeriodSeconds": 30}},
        ["would kill a draining router", "75"],
        id="grace-shorter-than-drain",
    ),
    pytest.param(
        {"router": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
        ["minReplicas is greater"],
        id="min-above-max",
    ),
    pytest.param(
        {"router": {"pdb": {"maxUnavailable": 2}}},
        ["all 2 routers to be evicted at once"],
        id="pdb-of-all",
    ),
    pytest.param(
        {"security": {"apiKeys": {"existingSecret": ""}}}, ["security.apiKeys"], id="no-keys"
    ),
    pytest.param(
        {"security": {"joinToken": {"existingSecret": ""}}}, ["security.joinToken"], id="no-token"
    ),
    pytest.param(
        {"security": {"tls": {"existingSecret": ""}}}, ["tls.mode to elsewhere"], id="no-tls"
    ),
    pytest.param({"security": {"joinTls": {"enabled": True}}}, ["joinTls"], id="no-join-tls"),
    pytest.param(
        {"security": {"joinTls": {"rankSecret": "x"}}}, ["joinTls.enabled"], id="rank-tls-alone"
    ),
    pytest.param({"ledger": {"tariff": {"currency": "USD"}}}, ["ledger.databaseUrl"], id="tariff"),
    pytest.param(
        {"ledger": {"databaseUrl": "postgresql://u@p/l"}},
        ["networkPolicy.postgres"],
        id="postgres-cut-off",
    ),
    pytest.param({"quotas": {"existingSecret": "x"}}, ["quotas.redisUrl"], id="password-of-none"),
    pytest.param(
        {"quotas": {"redisUrl": "redis://r:6379/0"}}, ["networkPolicy.redis"], id="redis-cut-off"
    ),
    pytest.param(
        {"ray": {"gcsFaultTolerance": {"enabled": True}}}, ["requires redisAddress"], id="no-redis"
    ),
    pytest.param(
        {"monitoring": {"serviceMonitor": {"enabled": True}}},
        ["role metrics", "openMetrics"],
        id="metrics-without-key",
    ),
    pytest.param(
        {"monitoring": {"prometheusRule": {"enabled": True}}},
        ["enable monitoring.serviceMonitor"],
        id="rules-without-series",
    ),
    pytest.param(
        {"model": {"stream": {"url": "s3://b/m"}}},
        ["model.volume.type to claim or hostPath"],
        id="stream-of-the-bundled-model",
    ),
    pytest.param(
        {"model": STREAM | {"download": DOWNLOAD}},
        ["cannot be combined with model.download"],
        id="stream-and-download",
    ),
    pytest.param(
        {"model": STREAM, "engine": {"args": {"load_format": "auto"}}},
        ["engine.args.load_format is computed from model.stream"],
        id="stream-and-load-format",
    ),
    pytest.param(
        {"model": {"stream": {"existingSecret": "keys"}}}, ["require url"], id="keys-without-stream"
    ),
    pytest.param(
        {"model": STREAM | {"stream": {"url": "https://b/m"}}}, ["url"], id="stream-over-https"
    ),
    pytest.param({"autoscaler": SCALER | {"pool": "x"}}, ["pool x does not exist"], id="no-pool"),
    pytest.param({"autoscaler": SCALER | {"cluster": "UPPER"}}, ["cluster"], id="odd-cluster"),
    pytest.param({"autoscaler": SCALER | {"prometheusUrl": ""}}, ["Prometheus"], id="no-metrics"),
    pytest.param({"autoscaler": SCALER | {"existingSecret": ""}}, ["role admin"], id="no-key"),
    pytest.param(
        {"autoscaler": SCALER, "ray": {"auth": {"existingSecret": ""}}},
        ["ray.auth.existingSecret", "--from-literal=auth_token=", "second Ray cluster"],
        id="no-token-of-ray",
    ),
    pytest.param(
        {"autoscaler": SCALER | {"minGroups": 3}},
        ["minGroups 3 is greater than maxGroups 2"],
        id="least-above-most",
    ),
    pytest.param(
        {"autoscaler": SCALER | {"maxGroups": None}},
        ["are both 1, so there is nothing to scale", "--set autoscaler.maxGroups=2"],
        id="nothing-to-scale",
    ),
    pytest.param(
        {"autoscaler": SCALER | {"settings": {}}},
        [
            "would have no data",
            "serviceMonitor.enabled",
            "openMetrics",
            "autoscaler.settings.selector",
        ],
        id="nobody-scrapes",
    ),
    pytest.param(
        {
            "autoscaler": {"enabled": True, "existingSecret": "", "minGroups": 0},
            "ray": {"auth": {"existingSecret": ""}},
        },
        [
            "autoscaler.prometheusUrl",
            "router.readyWhenParked",
            "autoscaler.existingSecret",
            "ray.auth.existingSecret",
            "would have no data",
        ],
        id="all-at-once",
    ),
    pytest.param(
        {"autoscaler": SCALER | {"minGroups": 0}},
        ["readyWhenParked"],
        id="nobody-to-park",
    ),
    pytest.param({"ingress": {"enabled": True}}, ["ingress.host"], id="ingress-without-host"),
    pytest.param({"gateway": {"enabled": True}}, ["parentRefs"], id="gateway-without-parent"),
    pytest.param(
        {"settings": {"group": {"data_parallel": 4}}},
        ["settings.group.data_parallel is computed", "parallelism.data"],
        id="computed-group",
    ),
    pytest.param(
        {"settings": {"models": [{"name": "a", "path": "/a"}]}},
        ["settings.models is computed", "set the value models"],
        id="several-models",
    ),
    pytest.param(
        {"settings": {"platform": "gpu"}}, ["pools[].accelerator"], id="computed-platform"
    ),
    pytest.param(
        {"settings": {"link": {"routers": ["x:1"]}}}, ["settings.link.routers"], id="computed-link"
    ),
]

# Invalid values, rejected by the schema. Helm 4 names the path as JSON pointer.
MALFORMED = [
    pytest.param({"routers": {}}, "routers", id="unknown-at-the-top"),
    pytest.param({"router": {"replica": 2}}, "replica", id="unknown-below"),
    pytest.param({"pools": [CPU | {"gpus": 8}]}, "gpus", id="unknown-in-a-pool"),
    pytest.param({"pools": []}, "pools", id="no-pool"),
    pytest.param({"pools": [{"name": "x"}]}, "accelerator", id="pool-without-accelerator"),
    pytest.param(cpu(name="Big"), "name", id="pool-name-in-capitals"),
    pytest.param(cpu(accelerator="tpu"), "accelerator", id="unknown-accelerator"),
    pytest.param(cpu(groups=-1), "groups", id="negative-groups"),
    pytest.param(cpu(resources={"cpu": "1", "memory": "lots"}), "memory", id="no-quantity"),
    pytest.param({"router": {"replicas": "two"}}, "replicas", id="text-for-a-number"),
    pytest.param({"router": {"ports": {"rest": 70000}}}, "rest", id="port-too-high"),
    pytest.param({"router": {"drainTimeout": 0}}, "drainTimeout", id="no-drain"),
    pytest.param({"router": {"env": {"A": 1}}}, "A", id="number-in-the-environment"),
    pytest.param({"parallelism": {"data": 0}}, "data", id="no-rank"),
    pytest.param({"parallelism": {"pipeline": 2}}, "pipeline", id="pipeline-parallelism"),
    pytest.param({"model": {"attention": "mha"}}, "attention", id="unknown-attention"),
    pytest.param({"model": {"path": "models/x"}}, "path", id="relative-path"),
    pytest.param({"model": {"dtype": "fp8"}}, "dtype", id="unknown-type"),
    pytest.param({"engine": {"allToAll": "pigeon"}}, "allToAll", id="unknown-all-to-all"),
    pytest.param({"engine": {"speculative": "eagle"}}, "speculative", id="unknown-drafting"),
    pytest.param({"image": {"router": {"digest": "abc"}}}, "digest", id="no-digest"),
    pytest.param({"ray": {"version": "latest"}}, "version", id="no-version"),
    pytest.param({"ray": {"upgradeStrategy": "Recreate"}}, "upgradeStrategy", id="strategy"),
    pytest.param({"security": {"runAsUser": 0}}, "runAsUser", id="root"),
    pytest.param({"security": {"apiKey": "x"}}, "apiKey", id="secret-in-values"),
    pytest.param(
        {"quotas": {"redisUrl": "redis://:secret@r/0"}}, "redisUrl", id="password-in-the-url"
    ),
    pytest.param(
        {"ray": {"gcsFaultTolerance": {"redisAddress": "redis://r:1"}}}, "redisAddress", id="url"
    ),
    pytest.param({"networkPolicy": {"clients": [{}]}}, "clients", id="peer-of-everybody"),
    pytest.param({"model": {"download": {"revision": "main"}}}, "revision", id="moving-branch"),
    pytest.param({"fullnameOverride": "1st"}, "fullnameOverride", id="name-with-a-digit-first"),
    pytest.param({"fullnameOverride": "a.b"}, "fullnameOverride", id="name-with-a-dot"),
    pytest.param({"commonLabels": {"build": 42}}, "build", id="number-as-a-label"),
    pytest.param({"image": {"router": {"tag": 1.0}}}, "tag", id="number-as-a-tag"),
    pytest.param({"ray": {"operatorVersion": "1.4"}}, "operatorVersion", id="operator-too-old"),
    pytest.param({"autoscaler": {"maxGroups": 0}}, "maxGroups", id="no-most"),
    pytest.param({"cloud": "azure"}, "cloud", id="unknown-cloud"),
    pytest.param({"settings": {"router": {"max_body": 1}}}, "max_body", id="unknown-setting"),
    pytest.param({"settings": {"fleet": {"stall_timeout": 0}}}, "stall_timeout", id="no-timeout"),
    pytest.param({"settings": {"telemetry": {"log_level": "loud"}}}, "log_level", id="log-level"),
]


@pytest.mark.parametrize(("values", "parts"), SENSELESS)
def test_senseless(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        render(**values)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize("helm", ["3", "4"])
@pytest.mark.parametrize(("values", "word"), MALFORMED)
def test_malformed(values: dict[str, Any], word: str, helm: str) -> None:
    with pytest.raises(Refused) as refused:
        rendered_text("default", json.dumps(values, sort_keys=True), helm)
    message = str(refused.value)
    assert "specifications of the schema" in message
    assert word in message


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(gpu(), id="gpu"),
        pytest.param({"autoscaler": SCALER}, id="autoscaler"),
        pytest.param(
            {"autoscaler": SCALER | {"settings": {}}, "security": {"openMetrics": True}},
            id="autoscaler-by-annotations",
        ),
        pytest.param(
            {
                "autoscaler": SCALER | {"settings": {}},
                "monitoring": {"serviceMonitor": {"enabled": True, "existingSecret": "metrics"}},
            },
            id="autoscaler-by-monitor",
        ),
        pytest.param(
            {
                "autoscaler": SCALER | {"settings": {}, "existingSecret": ""},
                "security": {"insecure": True},
                "ray": {"auth": {"existingSecret": ""}},
            },
            id="insecure-autoscaler",
        ),
        pytest.param(
            {"autoscaler": SCALER, "ray": {"auth": {"enabled": False, "existingSecret": ""}}},
            id="autoscaler-without-token",
        ),
        pytest.param(gpu(parallelism={"data": 16}), id="two-pods"),
        pytest.param(
            gpu(parallelism={"data": 2, "tensor": 8, "replicateKv": True}), id="mla-if-asked"
        ),
        pytest.param(
            gpu({"attention": "gqa", "keyValueHeads": 8}, parallelism={"data": 2, "tensor": 4}),
            id="gqa-tensor-parallel",
        ),
        pytest.param(
            gpu(cloud="gke", parallelism={"data": 8}, pool={"spot": True}), id="spot-on-gke"
        ),
        pytest.param(cpu(groups=0) | {"router": {"readyWhenParked": True}}, id="no-group-if-asked"),
        pytest.param({"settings": {"router": {"max_body_bytes": 2**20}}}, id="own-setting"),
    ],
)
def test_what_is_near_a_refusal_is_rendered(values: dict[str, Any]) -> None:
    assert render(**values)
