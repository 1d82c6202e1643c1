"""Several models in one release: a RayService for each pool, and everything else once."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.autoscaler.pool_app import scaled_pools
from serving.settings import load_settings, served_models
from tests.helm import schemas
from tests.helm.chart import HELMS, ROOT, Object, Refused, find, render, rendered_text
from tests.helm.operator_form import differences, operator_form

PRESET: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy" / "presets" / "two-models.yaml").read_text("utf-8")
)
R1, QWEN = "-deepseek-r1-h200", "-qwen3-30b-a3b-gpu"
SCALED: dict[str, Any] = {
    "autoscaler": {
        "enabled": True,
        "prometheusUrl": "http://prometheus:9090",
        "maxGpus": 40,
        "settings": {"selector": 'job="moe-routers"'},
    },
    "ray": {"auth": {"existingSecret": "moe-serving-ray"}},
}
EVERYTHING: dict[str, Any] = SCALED | {
    "fabricCheck": {"enabled": True},
    "imagePrePull": {"enabled": True},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "existingSecret": "moe-serving-metrics"},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}


def two(helm: str = "4", **changes: Any) -> list[Object]:
    return render(helm=helm, **(copy.deepcopy(PRESET) | changes))


def with_model(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return values in which one model is changed; null removes a key."""
    models = copy.deepcopy(PRESET["models"])
    models[number] |= changes
    return {"models": models}


def with_pool(number: int = 0, **changes: Any) -> dict[str, Any]:
    pool = PRESET["models"][number]["pools"][0] | changes
    return with_model(number, pools=[pool])


def settings_of(objects: list[Object], name: str, folder: Path) -> Any:
    file = folder / name
    file.write_text(find(objects, "ConfigMap", "-settings")["data"][name], "utf-8")
    return load_settings(file)


def applications(objects: list[Object], name: str) -> list[dict[str, Any]]:
    config = yaml.safe_load(find(objects, "RayService", name)["spec"]["serveConfigV2"])
    found: list[dict[str, Any]] = config["applications"]
    return found


@pytest.mark.parametrize("helm", ["3", "4"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["preset", "everything"])
def test_every_object_is_valid_under_both_helms(helm: str, changes: dict[str, Any]) -> None:
    objects = two(helm, **changes)
    for version in schemas.VERSIONS:
        assert [found for item in objects if (found := schemas.problems(item, version))] == []
    assert objects == two("4", **changes)


def test_the_figures_are_those_of_each_models_own_preset() -> None:
    sizing = yaml.safe_load((ROOT / "deploy/presets/sizing.yaml").read_text("utf-8"))["models"]
    for model in PRESET["models"]:
        figures = sizing[model["name"]]
        assert model["attentionHeads"] == figures["num_attention_heads"]
        assert model["keyValueHeads"] == figures["num_key_value_heads"]
        assert model["routedExperts"] == figures["n_routed_experts"]
        assert (model["attention"] == "mla") is ("kv_lora_rank" in figures)


@pytest.mark.parametrize("helm", HELMS)
def test_lint(helm: str) -> None:
    text = rendered_text(changes=json.dumps(PRESET), helm=helm, command="lint")
    assert "0 chart(s) failed" in text


def test_no_two_objects_have_one_name() -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in two(**EVERYTHING)]
    assert len(names) == len(set(names))
    services = [name for kind, name in names if kind == "RayService"]
    assert services == [f"serve-moe-serving{each}" for each in (R1, QWEN)]
    assert all(len(name) <= 40 for name in services)


@pytest.mark.parametrize("name", [R1, QWEN])
def test_each_service_is_in_the_operators_form(name: str) -> None:
    spec = find(two(), "RayService", name)["spec"]
    assert differences(spec, operator_form(spec)) == {}


def test_routers_and_ranks_have_the_same_settings(tmp_path: Path) -> None:
    objects = two()
    settings = settings_of(objects, "settings.yaml", tmp_path)
    r1, qwen = served_models(settings)
    assert (r1.names, qwen.names) == (("deepseek-r1", "r1"), ("qwen3-30b-a3b", "qwen3"))
    assert qwen.settings.router.reasoning_parser == "qwen3"
    for model, name in ((r1, R1), (qwen, QWEN)):
        (app,) = applications(objects, name)
        ranks = app["args"]["settings"]
        pool = model.settings
        assert app["name"] == ranks["ray"]["app_name"] == pool.ray.app_name
        assert ranks["model"] == {"name": model.name, "path": pool.model.path}
        assert ranks["group"]["pool"] == pool.group.pool
        assert ranks["group"]["data_parallel"] == pool.group.data_parallel
        assert ranks["group"]["node_resource"] == pool.group.node_resource
        assert ranks["engine"]["args"] == pool.engine.args
        groups = find(objects, "RayService", name)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert [f"pool-{group['groupName']}" for group in groups] == [pool.group.node_resource]


def test_the_autoscaler_scales_each_pool_of_its_own_service(tmp_path: Path) -> None:
    objects = two(**SCALED)
    settings = settings_of(objects, "autoscaler.yaml", tmp_path)
    assert settings.autoscaler.max_gpus == 40
    r1, qwen = scaled_pools(settings)
    assert [(pool.key, pool.gpus, pool.nodes) for pool in (r1, qwen)] == [
        ("deepseek-r1/h200", 16.0, 2),
        ("qwen3-30b-a3b/gpu", 2.0, 1),
    ]
    assert (r1.settings.min_groups, r1.settings.max_groups) == (1, 2)
    assert (qwen.settings.min_groups, qwen.settings.max_groups) == (0, 2)
    role = find(objects, "Role", "-autoscaler")["rules"]
    allowed = {rule["resources"][0]: rule.get("resourceNames") for rule in role}
    for model, pool, name in zip(served_models(settings), (r1, qwen), (R1, QWEN), strict=True):
        kubernetes = pool.settings.kubernetes
        service = find(objects, "RayService", name)
        assert kubernetes.service == service["metadata"]["name"]
        assert kubernetes.service in allowed["rayservices"]
        assert kubernetes.disruption_budget in allowed["poddisruptionbudgets"]
        budget = find(objects, "PodDisruptionBudget", name)
        assert kubernetes.disruption_budget == budget["metadata"]["name"]
        assert "minAvailable" not in budget["spec"], "the autoscaler sets it"
        (app,) = applications(objects, name)
        assert app["name"] == model.settings.ray.app_name
        assert app["external_scaler_enabled"]
        assert pool.settings.dashboard_url.startswith(f"http://{kubernetes.service}-head-svc.")
    assert len(allowed["rayservices"]) == len(allowed["poddisruptionbudgets"]) == 2


def test_budgets_select_the_pods_of_one_service_only() -> None:
    objects = two()
    pods = {}
    for name in (R1, QWEN):
        cluster = find(objects, "RayService", name)["spec"]["rayClusterConfig"]
        (group,) = cluster["workerGroupSpecs"]
        pods[name] = group["template"]["metadata"]["labels"]
        pods[f"{name}-ray-head"] = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    for name in pods:
        selected = find(objects, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        assert [each for each in pods if selected.items() <= pods[each].items()] == [name]


def test_routers_mount_every_models_volume_and_ranks_their_own() -> None:
    objects = two()
    router = find(objects, "Deployment", "-router")["spec"]["template"]["spec"]
    volumes = {item["name"]: item for item in router["volumes"]}
    mounts = {
        item["mountPath"]: volumes[item["name"]]
        for item in router["containers"][0]["volumeMounts"]
        if item["name"].startswith("model")
    }
    assert mounts["/models/deepseek"]["persistentVolumeClaim"]["claimName"] == "deepseek-r1"
    assert mounts["/models/qwen3"]["hostPath"]["path"] == "/mnt/nvme/models"
    for name, path in ((R1, "/models/deepseek"), (QWEN, "/models/qwen3")):
        cluster = find(objects, "RayService", name)["spec"]["rayClusterConfig"]
        pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
        found = [
            item["mountPath"]
            for item in pod["containers"][0]["volumeMounts"]
            if item["name"] == "model"
        ]
        assert found == [path]


def test_models_on_one_volume_share_its_mount() -> None:
    volume = PRESET["models"][0]["volume"]
    path = "/models/deepseek/other"
    router = find(two(**with_model(1, volume=volume, path=path)), "Deployment", "-router")
    pod = router["spec"]["template"]["spec"]
    assert len([item for item in pod["volumes"] if item["name"].startswith("model")]) == 1
    mounts = pod["containers"][0]["volumeMounts"]
    assert len([item for item in mounts if item["name"].startswith("model")]) == 1


def test_a_change_of_one_model_changes_no_other_service() -> None:
    before = two()
    changes = with_model(1, engine={"args": {"gpu_memory_utilization": 0.8}})
    after = two(**changes)
    assert find(before, "RayService", R1) == find(after, "RayService", R1)
    assert find(before, "RayService", QWEN) != find(after, "RayService", QWEN)


def test_another_pool_is_another_service() -> None:
    spare = PRESET["models"][0]["pools"][0] | {"name": "spare", "groups": 0}
    after = two(**with_model(pools=[*PRESET["models"][0]["pools"], spare]))
    assert find(two(), "RayService", R1) == find(after, "RayService", R1)
    (group,) = find(after, "RayService", "-deepseek-r1-spare")["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    assert group["replicas"] == 0


def test_long_names_are_shortened_and_stay_different() -> None:
    pools = [PRESET["models"][0]["pools"][0] | {"name": name} for name in ("a" * 28, "a" * 29)]
    objects = two(**with_model(name="x/" + "Model.Name-" * 6, pools=pools))
    names = [item["metadata"]["name"] for item in objects if item["kind"] == "RayService"]
    assert len(set(names)) == 3
    assert all(len(name) <= 40 for name in names)


def test_one_model_renders_what_the_single_form_renders() -> None:
    """Apart from names, the ranks of a unit are those of a release with only this model."""
    entry = copy.deepcopy(PRESET["models"][0])
    engine, split, pools = (entry.pop(key) for key in ("engine", "parallelism", "pools"))
    del entry["aliases"]
    single = {key: value for key, value in PRESET.items() if key != "models"}
    single |= {
        "model": entry,
        "engine": PRESET["engine"] | engine,
        "parallelism": split,
        "pools": pools,
    }
    alone = find(render(**single), "RayService")["spec"]
    unit = find(two(), "RayService", R1)["spec"]
    renamed = json.dumps(unit, sort_keys=True)
    for now, then in (
        ('"moe-serving/pool": "deepseek-r1-h200", "moe-serving/unit"', '"moe-serving/unit"'),
        ("serve-moe-serving-deepseek-r1-h200", "serve-moe-serving-h200"),
        ("deepseek-r1-h200", "h200"),
        ("          pool: h200\\n", ""),
    ):
        renamed = renamed.replace(now, then)
    result = json.loads(renamed)
    for spec in (result, alone):
        del spec["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
        template = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
        del template["metadata"]["annotations"]["checksum/settings"]
    configs = [yaml.safe_load(spec.pop("serveConfigV2")) for spec in (result, alone)]
    configs[0]["applications"][0]["args"]["settings"]["group"].pop("pool", None)
    assert configs[0] == configs[1]
    assert result == alone


REFUSED = [
    pytest.param({"model": {"name": "x"}}, "model: cannot be combined with models", id="model"),
    pytest.param({"pools": PRESET["models"][0]["pools"]}, "pools: cannot be combined", id="pools"),
    pytest.param(
        {"autoscaler": {"maxGroups": 2}}, "set maxGroups (and minGroups) of models[]", id="most"
    ),
    pytest.param(
        with_model(1, name="r1"), 'models[1]: "r1" is the name or an alias', id="same-name"
    ),
    pytest.param(
        with_model(volume={"type": "bundled"}), "models[0].volume.type: set claim", id="bundled"
    ),
    pytest.param(
        with_model(volume={"type": "claim"}), "models[0].volume: type claim requires", id="claim"
    ),
    pytest.param(
        with_model(path="/elsewhere/m"), "models[0].path: /elsewhere/m is not under", id="path"
    ),
    pytest.param(
        with_model(download={"enabled": True}), "models[0].download: not available", id="download"
    ),
    pytest.param(
        with_model(
            1,
            path="/models/deepseek/q",
            volume=PRESET["models"][1]["volume"] | {"mountPath": "/models/deepseek"},
        ),
        "models[1].volume.mountPath: another model has a different volume",
        id="mount-path",
    ),
    pytest.param(
        with_model(1, name="deepseek.r1", pools=PRESET["models"][0]["pools"]),
        "models[1].pools.h200: the objects of this pool would have the same names",
        id="same-object-names",
    ),
    pytest.param(
        with_model(pools=PRESET["models"][0]["pools"] * 2),
        "models[0].pools.h200: the objects",
        id="same-pool",
    ),
    pytest.param(with_model(parallelism={"data": 12}), "data to a multiple of 8", id="unplaceable"),
    pytest.param(with_model(attentionHeads=None), "attentionHeads", id="no-figures"),
    pytest.param(
        {"settings": {"models": [{"name": "x", "path": "/x"}]}},
        "settings.models is computed",
        id="settings",
    ),
    pytest.param(
        SCALED | with_pool(1, minGroups=3), "minGroups 3 is greater than maxGroups 2", id="bounds"
    ),
    pytest.param(
        SCALED | {"router": {"readyWhenParked": False}},
        "minGroups 0 requires router.readyWhenParked",
        id="not-ready-when-parked",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        two(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"autoscaler": {"maxGpus": 4}}, "limit the pools of several", id="gpus"),
        pytest.param(
            {
                "pools": [
                    {
                        "name": "cpu",
                        "accelerator": "cpu",
                        "minGroups": 0,
                        "resources": {"cpu": "1", "memory": "4Gi"},
                    }
                ]
            },
            "pools.cpu.minGroups: only for pools of models",
            id="min-groups",
        ),
    ],
)
def test_values_of_several_models_are_refused_for_one(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused) as caught:
        render(**changes)
    assert message in str(caught.value)


ADAPTERS: dict[str, Any] = {
    "adapters": [{"name": "legal", "path": "/models/deepseek/adapters/legal"}],
    "lora": {"slots": 8, "folder": "/models/deepseek/adapters", "baseNames": ["R1"]},
}


def test_adapters_reach_the_routers_and_the_ranks_of_their_model(tmp_path: Path) -> None:
    objects = two(**with_model(**ADAPTERS))
    first, second = served_models(settings_of(objects, "settings.yaml", tmp_path))
    model = first.settings.model
    assert [(each.name, each.path) for each in model.adapters] == [
        ("legal", "/models/deepseek/adapters/legal")
    ]
    assert (model.lora.slots, model.lora.max_rank) == (8, 16)
    assert (model.lora.folder, model.lora.base_names) == ("/models/deepseek/adapters", ("R1",))
    assert not second.settings.model.runs_adapters
    for name, runs in ((R1, True), (QWEN, False)):
        config = yaml.safe_load(find(objects, "RayService", name)["spec"]["serveConfigV2"])
        given = config["applications"][0]["args"]["settings"]["model"]
        assert ("adapters" in given, "lora" in given) == (runs, runs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {"adapters": [{"name": "legal", "path": "/elsewhere/legal"}]},
            "models[0].adapters[0].path: /elsewhere/legal is not under",
            id="path",
        ),
        pytest.param(
            {"lora": {"folder": "/elsewhere"}},
            "models[0].lora.folder: /elsewhere is not under",
            id="folder",
        ),
        pytest.param({"adapters": [{"name": "../x", "path": "/x"}]}, "adapters", id="name"),
        pytest.param({"lora": {"maxRank": 9}}, "maxRank", id="rank"),
    ],
)
def test_wrong_adapters_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as caught:
        two(**with_model(**changes))
    assert words in str(caught.value)
