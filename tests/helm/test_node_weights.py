"""Weights fetched into a folder on every node: a DaemonSet for each pool."""

from typing import Any

import pytest
import typer

from serving.cli.main import build_app
from tests.helm import schemas
from tests.helm.chart import Refused, find, pod_specs, render, settings_of, workers
from tests.helm.gpu import environment, gpu

REVISION = "0123456789abcdef0123456789abcdef01234567"


def values(pool: dict[str, Any] | None = None, **download: Any) -> dict[str, Any]:
    return gpu(
        pool,
        model={
            "path": "/models/r1",
            "volume": {"type": "hostPath", "hostPath": "/mnt/nvme"},
            "download": {
                "enabled": True,
                "repository": "deepseek-ai/DeepSeek-R1",
                "revision": REVISION,
                "existingSecret": "hub",
            }
            | download,
        },
    )


FETCH = ["weights", "fetch", "deepseek-ai/DeepSeek-R1", "/models/r1", "--revision", REVISION]


def filler(objects: list[dict[str, Any]], pool: str = "h200") -> dict[str, Any]:
    return find(objects, "DaemonSet", f"-weights-{pool}")


def model_mount(container: dict[str, Any]) -> dict[str, Any]:
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "model"]
    return dict(mount)


def model_volume(spec: dict[str, Any]) -> dict[str, Any]:
    (volume,) = [v for v in spec["volumes"] if v["name"] == "model"]
    return dict(volume)


def test_every_node_of_a_pool_is_filled() -> None:
    pool = {
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [{"key": "reserved", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    }
    objects = render(**values(pool))
    spec = filler(objects)["spec"]["template"]["spec"]
    ranks = workers(objects)["h200"]["template"]["spec"]
    for key in ("nodeSelector", "tolerations"):
        assert spec[key] == ranks[key]
    # It uses no GPU and no RDMA device.
    for container in [*spec["containers"], *spec["initContainers"]]:
        assert set(container["resources"]["limits"]) == {"memory"}
    folder, fetch = spec["initContainers"]
    assert fetch["args"] == FETCH
    assert "readOnly" not in model_mount(fetch)
    assert folder["args"] == ["/models/r1", "1000:1000"]
    volume = model_volume(spec)
    assert volume["hostPath"] == {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}
    # The folder that the ranks read.
    assert model_volume(ranks) == volume
    assert model_mount(fetch)["mountPath"] == model_mount(ranks["containers"][0])["mountPath"]
    assert not [i for i in objects if i["kind"] == "Job"]


def test_ranks_wait_and_only_read() -> None:
    objects = render(**values())
    spec = workers(objects)["h200"]["template"]["spec"]
    (wait,) = spec["initContainers"]
    assert wait["args"][:2] == ["weights", "wait"]
    for container in (wait, *spec["containers"]):
        assert model_mount(container)["readOnly"] is True


def test_only_the_folder_is_prepared_by_root() -> None:
    specs = pod_specs(render(**values()))
    root = [
        (name, container)
        for name, spec in specs.items()
        for container in [*spec["containers"], *spec.get("initContainers", ())]
        if container["securityContext"].get("runAsUser") == 0
    ]
    ((name, container),) = root
    assert name == "serve-moe-serving-weights-h200"
    assert container["name"] == "folder"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_folder_that_is_prepared_needs_no_root() -> None:
    spec = filler(render(**values(prepareFolder=False)))["spec"]["template"]["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["weights"]
    assert spec["securityContext"]["runAsUser"] == 1000


def test_the_folder_gets_the_charts_user() -> None:
    # As assigned by OpenShift; a template prints such numbers as 1.00068e+09.
    objects = render(**values(), security={"runAsUser": 1000680000})
    folder, fetch = filler(objects)["spec"]["template"]["spec"]["initContainers"]
    assert folder["args"][1] == "1000680000:1000680000"
    assert "runAsUser" not in fetch["securityContext"]


def test_routers_and_the_head_need_no_folder_on_their_nodes() -> None:
    objects = render(**values())
    specs = pod_specs(objects)
    router = specs["serve-moe-serving-router"]
    assert model_volume(router)["emptyDir"] == {"sizeLimit": "1Gi"}
    (fetch,) = router["initContainers"]
    assert fetch["args"] == [*FETCH, "--without-weights"]
    assert model_mount(fetch)["mountPath"] == model_mount(router["containers"][0])["mountPath"]
    assert settings_of(objects)["model"]["path"] == "/models/r1"
    assert not [v for v in specs["head"]["volumes"] if v["name"] == "model"]


def test_the_head_needs_no_folder_where_nothing_is_fetched() -> None:
    changed = values(enabled=False)
    head = pod_specs(render(**changed))["head"]
    assert not [v for v in head["volumes"] if "hostPath" in v]
    mounts = {mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in head["volumes"]}


@pytest.mark.parametrize("component", ["weights", "router"])
def test_what_fetches_reaches_the_hub(component: str) -> None:
    objects = render(**values(), networkPolicy={"hub": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]})
    policy = find(objects, "NetworkPolicy", f"-{component}")["spec"]
    rules = [r for r in policy["egress"] if r["to"] == [{"ipBlock": {"cidr": "10.9.0.0/16"}}]]
    assert [rule["ports"] for rule in rules] == [[{"protocol": "TCP", "port": 443}]]
    spec = pod_specs(objects)[
        "serve-moe-serving-router" if component == "router" else "serve-moe-serving-weights-h200"
    ]
    (fetch,) = [c for c in spec["initContainers"] if c["name"] == "weights"]
    assert "HF_TOKEN" in environment(fetch)


def test_two_pools_are_filled_by_two_sets() -> None:
    given = values()
    given["pools"].append(given["pools"][0] | {"name": "h100", "nodeSelector": {"gpu": "h100"}})
    objects = render(**given)
    for pool, other in (("h200", "h100"), ("h100", "h200")):
        spec = filler(objects, pool)["spec"]
        selector = spec["selector"]["matchLabels"]
        assert selector.items() <= spec["template"]["metadata"]["labels"].items()
        labels = filler(objects, other)["spec"]["template"]["metadata"]["labels"]
        assert not selector.items() <= labels.items()
    for item in objects:
        for version in ("1.30", "1.36"):
            assert schemas.problems(item, version) == []


def test_a_sub_path_is_the_same_for_all() -> None:
    given = values()
    given["model"]["volume"]["subPath"] = "shared/models"
    objects = render(**given)
    spec = filler(objects)["spec"]["template"]["spec"]
    ranks = workers(objects)["h200"]["template"]["spec"]
    found = [model_mount(c) for c in [*spec["initContainers"], *ranks["containers"]]]
    assert {mount["subPath"] for mount in found} == {"shared/models"}


def test_the_bundled_model_is_not_fetched() -> None:
    with pytest.raises(Refused, match="claim or hostPath"):
        render(model={"download": {"enabled": True}})


@pytest.mark.parametrize("where", ["pool h200", "serve-moe-serving-router", "weights-h200"])
def test_the_program_takes_the_arguments(where: str) -> None:
    specs = pod_specs(render(**values()))
    spec = specs.get(where) or specs[f"serve-moe-serving-{where}"]
    (container,) = [c for c in spec["initContainers"] if c["name"] == "weights"]
    name, *given = container["args"]
    command = typer.main.get_command(build_app(name))
    taken = command.commands[name].make_context(name, given).params  # type: ignore[attr-defined]
    assert taken["repository"] == "deepseek-ai/DeepSeek-R1"
    assert str(taken["folder"]) == "/models/r1"
    assert taken["revision"] == REVISION
    assert taken["step"] == ("wait" if where.startswith("pool") else "fetch")
    assert taken["without_weights"] is where.endswith("-router")
