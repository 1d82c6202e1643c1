"""The RayService is rendered as the KubeRay operator writes it back.

Otherwise, the operator, which adds its finalizer with an update of the whole object, would become
the owner of fields that Helm 4 applies, and every upgrade would end with a conflict.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import PRESETS, Refused, find, render
from tests.helm.operator_form import differences, operator_form
from tests.helm.quantities import canonical

RECORDED = Path(__file__).parent / "recorded"
ALL = ["default", *PRESETS]

ON_PURPOSE = [
    # The recording's "route_prefix: null" leaves Serve's proxies, and so all pods, unready.
    r"\.serveConfigV2",
    # The operator could not read the resources in double quotes.
    r"\.rayStartParams\.resources$",
    # Ray's token is in a Secret that exists before, so the autoscaler can read it.
    r"\.rayClusterConfig\.authOptions\.secretName",
    # RDMA devices are found in the pod, and memory is locked without a capability.
    r"\.workerGroupSpecs\[0\]\.template\.spec\.containers\[0\]\.env$",
    r"\.securityContext\.capabilities\.add$",
    # The pods of one group are placed close together if possible, separately for each Ray cluster.
    r"\.workerGroupSpecs\[0\]\.template\.spec\.affinity\.podAffinity",
    # A change of one pool's settings changes that pool's pods, not the head.
    r"\.headGroupSpec\.template\.metadata\.annotations$",
    # The head reads no weights from a node's disk.
    r"\.headGroupSpec\.template\.spec\.(volumes|containers\[0\]\.volumeMounts)$",
]
"""Paths at which the chart differs from the recording."""

CPU: dict[str, Any] = {
    "name": "cpu",
    "accelerator": "cpu",
    "resources": {"cpu": "1", "memory": "4Gi"},
}
GPU: dict[str, Any] = {
    "name": "h200",
    "accelerator": "gpu",
    "gpusPerNode": 8,
    "resources": {"cpu": 80, "memory": "900Gi"},
}
TERM: dict[str, Any] = {"topologyKey": "zone", "labelSelector": {}}
NODE_TERM: dict[str, Any] = {"matchExpressions": [{"key": "a", "operator": "Exists", "values": []}]}


def cpu(**pool: Any) -> dict[str, Any]:
    return {"pools": [CPU | pool]}


def gpu(**pool: Any) -> dict[str, Any]:
    return {"pools": [GPU | pool], "parallelism": {"data": 8}, "model": {"routedExperts": 64}}


def head(**values: Any) -> dict[str, Any]:
    return {"ray": {"head": values}}


def rendered_spec(preset: str = "default", **values: Any) -> dict[str, Any]:
    spec: dict[str, Any] = find(render(preset, **values), "RayService")["spec"]
    return spec


def recorded(preset: str) -> dict[str, Any]:
    """Return the recorded spec with the release's name and namespace of these tests."""
    text = (RECORDED / f"{preset}.yaml").read_text("utf-8")
    text = text.replace("rec-moe-serving", "serve-moe-serving").replace(".default.svc", ".prod.svc")
    text = text.replace("instance: rec", "instance: serve")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


PRESETS_RECORDED = sorted(file.stem for file in RECORDED.glob("*.yaml"))


def test_every_preset_is_recorded() -> None:
    assert set(PRESETS_RECORDED) == set(ALL) - {"everything"}


@pytest.mark.parametrize("preset", PRESETS_RECORDED)
def test_what_the_operator_wrote_is_what_the_tables_say(preset: str) -> None:
    assert differences(recorded(preset), operator_form(recorded(preset))) == {}


@pytest.mark.parametrize("preset", PRESETS_RECORDED)
def test_a_rendering_is_the_recorded_one(preset: str) -> None:
    found = differences(rendered_spec(preset), recorded(preset))
    checksum = r"annotations\.checksum/settings"  # of the settings, release and namespace included
    other = {
        path: what
        for path, what in found.items()
        if not any(re.search(rule, path) for rule in [*ON_PURPOSE, checksum])
    }
    assert other == {}


@pytest.mark.parametrize("preset", ALL)
def test_a_preset_is_in_the_operators_form(preset: str) -> None:
    spec = rendered_spec(preset)
    assert differences(spec, operator_form(spec)) == {}


VALUES = [
    pytest.param(cpu(resources={"cpu": 0.5, "memory": "1024Mi"}), id="fraction-of-a-cpu"),
    pytest.param(
        cpu(resources={"cpu": "1000m", "memory": "1.5Gi"}), id="milli-and-binary-fraction"
    ),
    pytest.param(cpu(resources={"cpu": "2.0", "memory": 4294967296}), id="decimals-and-bytes"),
    pytest.param(cpu(resources={"cpu": 2.5, "memory": "4000M"}), id="two-and-a-half"),
    pytest.param(cpu(resources={"cpu": 1e3, "memory": "1e10"}), id="exponents"),
    pytest.param(cpu(sharedMemory="2048Mi"), id="shared-memory"),
    pytest.param(cpu(sharedMemory=1000000), id="shared-memory-in-bytes"),
    pytest.param(gpu(hugePages={"size": "2Mi", "amount": "1024Mi"}), id="huge-pages"),
    pytest.param(gpu(hugePages={"size": "1Gi", "amount": 2147483648}), id="huge-pages-in-bytes"),
    pytest.param(gpu(rdma={"resource": "rdma/ib", "count": 1000}), id="a-thousand-devices"),
    pytest.param(gpu(gpuResource="amd.com/gpu"), id="other-gpus"),
    pytest.param(cpu(tolerations=[]), id="no-tolerations"),
    pytest.param(
        cpu(tolerations=[{"key": "", "operator": "Exists", "value": ""}]),
        id="toleration-of-everything",
    ),
    pytest.param(
        cpu(tolerations=[{"key": "a", "operator": "Exists", "tolerationSeconds": 0}]),
        id="toleration-for-no-second",
    ),
    pytest.param(cpu(nodeSelector={}), id="no-node-selector"),
    pytest.param(
        cpu(nodeSelector={"a": "1", "b": "true", "c": "", "d": "1e3", "e": "null", "f": "y"}),
        id="node-selector-like-numbers",
    ),
    pytest.param(cpu(affinity={}), id="no-affinity"),
    pytest.param(
        cpu(affinity={"nodeAffinity": {}, "podAffinity": {}, "podAntiAffinity": {}}),
        id="empty-affinities",
    ),
    pytest.param(
        cpu(
            affinity={
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [NODE_TERM]
                    },
                    "preferredDuringSchedulingIgnoredDuringExecution": [],
                },
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []},
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "podAffinityTerm": TERM | {"namespaces": []}}
                    ],
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        TERM
                        | {"labelSelector": {"matchLabels": {}, "matchExpressions": []}}
                        | {"namespaceSelector": {"matchLabels": {"a": ""}}}
                    ],
                },
            }
        ),
        id="affinities-with-empty-lists",
    ),
    pytest.param(
        gpu(
            affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
            topology={"key": "block"},
        ),
        id="affinity-and-topology",
    ),
    pytest.param(cpu(env={"EMPTY": "", "ONE": "1", "NO": "no"}), id="environment"),
    pytest.param(cpu(env={"HOME": "/elsewhere"}), id="environment-twice"),
    pytest.param(cpu(runtimeClassName="", priorityClassName=""), id="no-classes"),
    pytest.param(gpu(rdma={"resource": "rdma/ib", "networks": ""}), id="no-networks"),
    pytest.param(gpu(rdma={"resource": "rdma/ib", "hostNetwork": False}), id="no-host-network"),
    pytest.param(head(resources={"requests": {"cpu": 0.25, "memory": "4096Mi"}}), id="head"),
    pytest.param(head(resources={"requests": None, "limits": None}), id="head-without-resources"),
    pytest.param(
        head(resources={"requests": {"cpu": None, "memory": None}, "limits": {"memory": 0}}),
        id="head-with-empty-resources",
    ),
    pytest.param(head(tolerations=[], affinity={}, nodeSelector={}), id="head-with-empty-lists"),
    pytest.param(
        head(affinity={"nodeAffinity": {}}, nodeSelector={"a": "off"}), id="head-with-affinity"
    ),
    pytest.param({"image": {"pullSecrets": []}}, id="no-pull-secrets"),
    pytest.param({"ray": {"deletionDelaySeconds": 0}}, id="no-delay"),
    pytest.param({"security": {"readOnlyRanks": False}}, id="writable-root"),
    pytest.param({"security": {"insecure": True}}, id="insecure"),
    pytest.param({"ray": {"auth": {"enabled": False}}}, id="no-token"),
    pytest.param({"commonLabels": {"a": "", "b": "1"}}, id="labels"),
    pytest.param({"commonAnnotations": {"a": "", "b": "on"}}, id="annotations"),
    pytest.param(
        {
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": ["10.0.0.10"],
                "searches": [],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0", "value": ""}],
            },
        },
        id="dns",
    ),
    pytest.param({"dnsConfig": {}, "dnsPolicy": ""}, id="no-dns"),
    pytest.param(
        {
            "scheduling": {
                "schedulerName": "volcano",
                "podLabels": {"queue": "1"},
                "podAnnotations": {"x": "", "y": "yes"},
            }
        },
        id="batch-scheduler",
    ),
    pytest.param(gpu(rdma={"resource": "rdma/ib", "memlock": "root"}), id="memlock-as-root"),
    pytest.param(gpu(rdma={"resource": "rdma/ib", "hca": ["mlx5_0", "mlx5_1"]}), id="device-names"),
    pytest.param(gpu(groups=2, topology={"key": "block", "required": True}), id="required-blocks"),
    pytest.param(
        {
            "model": {
                "path": "/models/m",
                "volume": {"type": "hostPath", "hostPath": "/mnt/nvme"},
                "download": {"enabled": True, "repository": "o/m", "revision": "0" * 40},
            }
        },
        id="weights-on-nodes",
    ),
    pytest.param(
        {
            "model": {
                "path": "/models/m",
                "volume": {"type": "claim", "claimName": "c", "subPath": ""},
                "stream": {"url": "s3://b/m", "existingSecret": "", "serviceAccount": ""},
            }
        },
        id="streamed-weights",
    ),
    pytest.param(
        {
            "ray": {"gcsFaultTolerance": {"redisAddress": "redis:6379", "existingSecret": "r"}},
            "networkPolicy": {"redis": [{"podSelector": {}}]},
        },
        id="fault-tolerance",
    ),
]


@pytest.mark.parametrize("values", VALUES)
def test_whatever_the_values_the_form_is_the_operators(values: dict[str, Any]) -> None:
    spec = rendered_spec(**values)
    assert differences(spec, operator_form(spec)) == {}


def test_helm_3_writes_the_same_form() -> None:
    """All pools of the table above in one release."""
    given = [values for parameters in VALUES for values in parameters.values]
    pools = [
        pool | {"name": f"p{index}"}
        for index, values in enumerate(given)
        for pool in values.get("pools", ())
        if pool["accelerator"] == "cpu"
    ]
    assert len(pools) > 10
    three, four = (rendered_spec(helm=helm, pools=pools) for helm in ("3", "4"))
    assert differences(three, four) == {}
    assert differences(three, operator_form(three)) == {}


QUANTITIES = [
    ("0", "0"), (0, "0"), ("0.0", "0"), ("0Gi", "0"), ("000", "0"),
    (0.5, "500m"), ("500m", "500m"), ("1000m", "1"), ("1500m", "1500m"), (2, "2"), ("2.0", "2"),
    (2.5, "2500m"), ("2.50", "2500m"), (".5", "500m"), ("5.", "5"), ("007", "7"), (1e3, "1k"),
    ("1e3", "1e3"), ("12E4", "120e3"), ("1e0", "1"), ("15e-1", "1500e-3"), ("1000000u", "1"),
    (1000000, "1M"), ("123456", "123456"), ("4000M", "4G"), ("1.5G", "1500M"),
    ("1024Mi", "1Gi"), ("1536Mi", "1536Mi"), ("1.5Gi", "1536Mi"), ("0.5Ki", "512"),
    ("1.5Ki", "1536"), ("0.3Gi", "322122547200m"), ("1048576Ki", "1Gi"), ("900Gi", "900Gi"),
    ("1073741824", "1073741824"), ("1Ti", "1Ti"), ("2.05Ti", "2253998836940800m"),
]  # fmt: skip
"""As resource.Quantity of Kubernetes 0.36 writes them."""


@pytest.mark.parametrize(("given", "expected"), QUANTITIES)
def test_a_quantity_is_written_as_kubernetes_does(given: Any, expected: str) -> None:
    assert canonical(str(given)) == expected
    spec = rendered_spec(**cpu(resources={"cpu": "1", "memory": given}))
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == expected


def test_all_quantities_of_the_table_at_once() -> None:
    """All combinations of numbers, fractions and suffixes, in one rendering."""
    texts = [
        f"{number}.{fraction}{suffix}"
        for number in (0, 1, 7, 10, 512, 1000, 1023, 1024, 65536)
        for fraction in ("0", "25", "125", "04")
        for suffix in ("", "m", "k", "M", "Ki", "Gi", "e3")
    ]
    given = {f"example.com/q{index}": text for index, text in enumerate(texts)}
    spec = rendered_spec(**head(resources={"requests": given}))
    (container,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    written = container["resources"]["requests"]
    wrong = {
        text: written[name] for name, text in given.items() if written[name] != canonical(text)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        pytest.param("0.0000000001", "too small", id="below-nano"),
        pytest.param("100000000Pi", "too large", id="above-int64"),
        pytest.param("1e99", "too large", id="exponent"),
        pytest.param("1234567890123456789", "digits", id="digits"),
        pytest.param("4 Gi", "memory", id="space"),
        pytest.param("4GiB", "memory", id="unit"),
        pytest.param("-1", "memory", id="negative"),
        pytest.param(-1, "memory", id="negative-number"),
        pytest.param("", "memory", id="empty"),
    ],
)
def test_what_is_no_quantity_or_none_that_is_kept_is_refused(given: Any, word: str) -> None:
    with pytest.raises(Refused) as refused:
        render(**cpu(resources={"cpu": "1", "memory": given}))
    assert word in str(refused.value)


def test_an_older_operator_gets_no_field_that_it_does_not_know() -> None:
    (group,) = rendered_spec(ray={"operatorVersion": "1.6"})["rayClusterConfig"]["workerGroupSpecs"]
    assert "priority" not in group
    assert group["numOfHosts"] == 1


def test_a_variable_that_is_given_wins_over_the_charts() -> None:
    (group,) = rendered_spec(**cpu(env={"HOME": "/x"}))["rayClusterConfig"]["workerGroupSpecs"]
    environment = group["template"]["spec"]["containers"][0]["env"]
    assert [entry["value"] for entry in environment if entry["name"] == "HOME"] == ["/x"]
