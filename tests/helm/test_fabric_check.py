"""The Job that proves all-to-all before ranks load: placed and equipped as the ranks' pods."""

from pathlib import Path
from typing import Any

import pytest
import typer

from serving.cli.main import build_app
from serving.engine.fabric.plan import parse_leader
from serving.engine.rdma import Host, hca_environment
from tests.helm import schemas
from tests.helm.chart import Refused, find, pod_specs, render, workers
from tests.helm.gpu import BLOCK, environment, gpu, tied, topology_terms
from tests.helm.test_network import PODS, allowed

ON: dict[str, Any] = {"enabled": True}
RICH: dict[str, Any] = {
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "reserved", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "ok", "operator": "Exists"}]}]
            }
        }
    },
    "runtimeClassName": "nvidia",
    "priorityClassName": "serving",
    "rdma": {
        "resource": "rdma/ib",
        "count": 8,
        "hostNetwork": True,
        "networks": "rdma-a,rdma-b",
        "hca": ["mlx5_0"],
    },
    "sharedMemory": "64Gi",
    "hugePages": {"size": "2Mi", "amount": "5Gi"},
    "env": {"NCCL_DEBUG": "WARN"},
}


def check(objects: list[dict[str, Any]], pool: str = "h200") -> dict[str, Any]:
    return find(objects, "Job", f"-fabric-{pool}")


def arguments(job: dict[str, Any]) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["moe-serving"]
    name, *rest = container["args"]
    assert name == "fabric-check"
    return dict(zip(rest[::2], rest[1::2], strict=True))


def test_nothing_of_it_unless_asked() -> None:
    assert not [i for i in render(**gpu()) if "fabric" in i["metadata"]["name"]]


def test_as_many_pods_as_a_group_meet_at_the_first() -> None:
    job = check(render(**gpu({"groups": 3}), fabricCheck=ON))
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    # One failed peer decides the result: nothing is retried.
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    # Kubernetes names an Indexed Job's pods NAME-INDEX, below the subdomain's Service.
    name = job["metadata"]["name"]
    assert spec["template"]["spec"]["subdomain"] == name
    assert arguments(job) == {
        "--peers": "2",
        "--index": "$(JOB_COMPLETION_INDEX)",
        "--leader": f"{name}-0.{name}.prod.svc.cluster.local:29500",
        "--backend": "auto",
        "--workers-per-peer": "8",
        "--timeout": "600",
    }


def test_a_pool_without_groups_is_not_waited_for() -> None:
    values = gpu()
    values["pools"].append(values["pools"][0] | {"name": "later", "groups": 0, "maxGroups": 2})
    objects = render(**values, fabricCheck=ON)
    assert [i["metadata"]["labels"]["moe-serving/pool"] for i in objects if i["kind"] == "Job"] == [
        "h200"
    ]


def test_peers_are_found_before_they_are_ready() -> None:
    objects = render(**gpu(), fabricCheck=ON)
    job = check(objects)
    service = find(objects, "Service", "-fabric-h200")
    assert service["metadata"]["name"] == job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    pod = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pod.items()


def test_two_pools_are_two_checks_that_do_not_meet() -> None:
    values = gpu()
    values["pools"].append(values["pools"][0] | {"name": "h100", "gpusPerNode": 4})
    objects = render(**values, fabricCheck=ON)
    for pool, other in (("h200", "h100"), ("h100", "h200")):
        selector = find(objects, "Service", f"-fabric-{pool}")["spec"]["selector"]
        pod = check(objects, other)["spec"]["template"]["metadata"]["labels"]
        assert not selector.items() <= pod.items()
    assert arguments(check(objects, "h100"))["--peers"] == "4"
    assert arguments(check(objects, "h100"))["--workers-per-peer"] == "4"


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param({}, id="plain"),
        pytest.param(RICH, id="rich"),
        pytest.param({"topology": {"key": BLOCK, "required": True}}, id="topology"),
        pytest.param({"rdma": {"resource": "rdma/ib", "memlock": "root"}}, id="root"),
    ],
)
def test_its_pods_are_placed_and_equipped_as_the_ranks(pool: dict[str, Any]) -> None:
    objects = render(
        **gpu(pool),
        fabricCheck=ON,
        scheduling={"schedulerName": "volcano"},
        dnsConfig={"options": [{"name": "ndots", "value": "1"}]},
    )
    ranks = workers(objects)["h200"]["template"]
    job = check(objects)["spec"]["template"]
    for key in (
        "nodeSelector",
        "tolerations",
        "runtimeClassName",
        "priorityClassName",
        "schedulerName",
        "hostNetwork",
        "dnsPolicy",
        "dnsConfig",
        "securityContext",
    ):
        assert job["spec"].get(key) == ranks["spec"].get(key), key
    own, theirs = job["spec"]["containers"][0], ranks["spec"]["containers"][0]
    for key in ("image", "imagePullPolicy", "resources", "securityContext"):
        assert own[key] == theirs[key], key
    found = environment(own)
    assert found.pop("NODE_NAME") == ""  # from the pod
    assert found == environment(theirs)
    networks = "k8s.v1.cni.cncf.io/networks"
    attached = job["metadata"].get("annotations", {}).get(networks)
    assert attached == ranks["metadata"]["annotations"].get(networks)
    mounts = {mount["mountPath"] for mount in own["volumeMounts"]}
    wanted = {"/tmp", "/home/serving", "/dev/shm"} | ({"/dev/hugepages"} & _mounted(theirs))
    assert mounts == wanted
    volumes = {volume["name"]: volume for volume in ranks["spec"]["volumes"]}
    for volume in job["spec"]["volumes"]:
        assert volume == volumes[volume["name"]]
    node = "nodeAffinity"
    assert job["spec"].get("affinity", {}).get(node) == ranks["spec"].get("affinity", {}).get(node)


def _mounted(container: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in container["volumeMounts"]}


def test_it_checks_one_block_where_a_group_has_one() -> None:
    objects = render(
        **gpu({"groups": 2, "topology": {"key": BLOCK, "required": True}}), fabricCheck=ON
    )
    for pool in ("h200-0", "h200-1"):
        template = check(objects, pool)["spec"]["template"]
        own = template["metadata"]["labels"]
        (term,) = topology_terms(template["spec"], required=True)
        assert tied(term, own, own)
        # Not to the ranks or the other group's check.
        ranks = workers(objects)[pool]["template"]["metadata"]["labels"]
        other = check(objects, "h200-1" if pool == "h200-0" else "h200-0")
        assert not tied(term, own, ranks)
        assert not tied(term, own, other["spec"]["template"]["metadata"]["labels"])


def test_helm_waits_for_it_before_anything_is_installed() -> None:
    objects = render(**gpu(), fabricCheck=ON | {"hooks": ["pre-install", "test"]})
    made = [i for i in objects if "fabric" in i["metadata"]["name"]]
    assert {item["kind"] for item in made} == {"Job", "Service", "NetworkPolicy"}
    weights = {}
    for item in made:
        found = item["metadata"]["annotations"]
        assert found["helm.sh/hook"] == "pre-install,test"
        # Deleted on success; a failed check stays until the next attempt or its expiry.
        policy = set(found["helm.sh/hook-delete-policy"].split(","))
        assert policy == {"before-hook-creation", "hook-succeeded"}
        weights[item["kind"]] = int(found["helm.sh/hook-weight"])
    assert weights["Service"] < weights["Job"]
    assert weights["NetworkPolicy"] < weights["Job"]
    spec = check(objects)["spec"]
    assert spec["activeDeadlineSeconds"] == 1200
    assert spec["ttlSecondsAfterFinished"] == 3600


def test_by_default_an_upgrade_waits_for_no_free_nodes() -> None:
    job = check(render(**gpu(), fabricCheck=ON))
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install"


def test_it_runs_on_cpus_with_gloo() -> None:
    job = find(render(fabricCheck=ON), "Job", "-fabric-cpu")
    assert arguments(job)["--peers"] == "2"
    assert arguments(job)["--workers-per-peer"] == "1"
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) == {"memory"}


def test_only_its_own_pods_and_dns_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {
        "app.kubernetes.io/instance": "serve",
        "app.kubernetes.io/component": "fabric-check",
    }
    monkeypatch.setitem(PODS, "fabric", labels)
    objects = render(**gpu(), fabricCheck=ON)
    job = check(objects)
    assert labels.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    # Before the release's policies exist (install) and in addition to them (helm test).
    for there in (
        [i for i in objects if "helm.sh/hook" in i["metadata"].get("annotations", {})],
        objects,
    ):
        assert allowed(there, "fabric", "fabric", 29500)
        assert allowed(there, "fabric", "fabric", 40000)
        assert not allowed(there, "client", "fabric", 29500)
        assert not allowed(there, "fabric", "client", 29500)
        assert not allowed(there, "fabric", "router", 50052)
    policy = find(objects, "NetworkPolicy", "-fabric-check")["spec"]
    (dns,) = [rule for rule in policy["egress"] if "ports" in rule]
    assert {"protocol": "UDP", "port": 53} in dns["ports"]


@pytest.mark.parametrize("full", ["x" * 40, "serve"])
def test_host_names_of_its_pods_are_labels(full: str) -> None:
    values = gpu({"name": "p" * 30, "groups": 2, "topology": {"key": BLOCK, "required": True}})
    objects = render(**values, fabricCheck=ON, fullnameOverride=full)
    names = [i["metadata"]["name"] for i in objects if i["kind"] == "Job"]
    assert len(set(names)) == 2
    for name in names:
        assert len(f"{name}-1023") <= 63
    for item in objects:
        for version in schemas.VERSIONS:
            assert schemas.problems(item, version) == []


def test_large_numbers_are_written_out() -> None:
    on = ON | {"keepSeconds": 2000000, "deadlineSeconds": 86400, "timeout": 3600, "port": 65535}
    job = check(render(**gpu(), fabricCheck=on, security={"runAsUser": 1000680000}))
    assert job["spec"]["ttlSecondsAfterFinished"] == 2000000
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000680000
    assert arguments(job)["--timeout"] == "3600"
    assert schemas.problems(job, "1.36") == []


def test_labels_for_a_queue_are_the_jobs() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus"}
    on = ON | {"labels": labels, "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"}}
    job = check(render(**gpu(), fabricCheck=on))
    assert labels.items() <= job["metadata"]["labels"].items()
    pod = job["spec"]["template"]["metadata"]
    assert "kueue.x-k8s.io/queue-name" not in pod["labels"]
    assert pod["labels"]["a"] == "b"
    assert pod["annotations"] == {"c": "d"}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        pytest.param({"fabricCheck": ON | {"backend": "nccl"}}, "requires GPUs", id="nccl-on-cpus"),
        pytest.param(
            {"fabricCheck": ON | {"timeout": 60, "deadlineSeconds": 60}},
            "before the check can report the reason",
            id="no-time-to-say-why",
        ),
        pytest.param({"fabricCheck": ON | {"hooks": []}}, "hooks", id="never"),
        pytest.param({"fabricCheck": ON | {"hooks": ["post-install"]}}, "hooks", id="too-late"),
        pytest.param({"fabricCheck": ON | {"backend": "mpi"}}, "backend", id="backend"),
        pytest.param(
            {"fabricCheck": ON | {"podLabels": {"moe-serving/pool": "x"}}},
            "set by the chart",
            id="label",
        ),
    ],
)
def test_refusals(values: dict[str, Any], part: str) -> None:
    with pytest.raises(Refused) as refused:
        render(**values)
    assert part in str(refused.value)


def test_its_pods_are_no_ranks() -> None:
    """Budgets and Services of the release do not count them."""
    objects = render(**gpu(), fabricCheck=ON)
    pod = check(objects)["spec"]["template"]["metadata"]["labels"]
    for item in objects:
        if item["kind"] == "PodDisruptionBudget":
            assert not item["spec"]["selector"]["matchLabels"].items() <= pod.items()
    assert "serve-moe-serving-fabric-h200" in pod_specs(objects)


def test_the_program_takes_the_arguments() -> None:
    job = check(render(**gpu(), fabricCheck=ON | {"backend": "nccl"}))
    name, *given = job["spec"]["template"]["spec"]["containers"][0]["args"]
    given = [text.replace("$(JOB_COMPLETION_INDEX)", "1") for text in given]
    command = typer.main.get_command(build_app(name))
    taken = command.commands[name].make_context(name, given).params  # type: ignore[attr-defined]
    assert (taken["peers"], taken["index"], taken["workers"]) == (2, 1, 8)
    assert taken["backend"] == "nccl"
    host, port = parse_leader(taken["leader"])
    assert port == 29500
    # Messages derive the names of the other pods from the leader's name.
    assert host.startswith("serve-moe-serving-fabric-h200-0.")


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param({}, id="found"),
        pytest.param({"hca": "mlx5"}, id="prefix"),
        pytest.param({"hca": ["mlx5_0", "mlx5_1:1"]}, id="names"),
    ],
)
def test_the_program_knows_the_variables(pool: dict[str, Any], tmp_path: Path) -> None:
    """On a host whose kernel shows mlx5_0, mlx5_1 and another vendor's card."""
    for number, device in enumerate(("mlx5_0", "mlx5_1", "bnxt_re0")):
        ports = tmp_path / "sys/class/infiniband" / device / "ports/1"
        ports.mkdir(parents=True)
        for file, text in {"state": "4: ACTIVE", "rate": "400 Gb/sec", "link_layer": "x"}.items():
            (ports / file).write_text(text)
        verbs = tmp_path / f"sys/class/infiniband_verbs/uverbs{number}"
        verbs.mkdir(parents=True)
        (verbs / "ibdev").write_text(device)
        (tmp_path / "dev/infiniband").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"dev/infiniband/uverbs{number}").touch()
    host = Host(sys=tmp_path / "sys", dev=tmp_path / "dev")
    objects = render(**gpu({"rdma": {"resource": "rdma/ib"} | pool}), fabricCheck=ON)
    (container,) = check(objects)["spec"]["template"]["spec"]["containers"]
    found = environment(container)
    names = (found | hca_environment(found, host))["NVSHMEM_HCA_LIST"].split(",")
    devices = {name.partition(":")[0] for name in names}
    assert devices == {"mlx5_0", "mlx5_1"} | ({"bnxt_re0"} if not pool else set())
