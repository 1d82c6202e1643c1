"""The rendered objects: sizes, placement, ports, permissions, and no secrets."""

import json
import shlex
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import yaml

from serving.edge.auth.security import require_secure_bind
from serving.engine.ray.cluster import OBJECT_STORE_BYTES
from serving.engine.ray.deployment import STOP_TIMEOUT
from serving.engine.serve_app import build
from serving.settings import load_settings
from tests.helm import schemas
from tests.helm.chart import (
    PRESETS,
    find,
    pod_specs,
    render,
    serve_config,
    settings_of,
    workers,
)

ALL = ["default", *PRESETS]

# preset: pool: data, tensor, ranks a pod, pods a group, groups, GPUs a pod
SIZES = {
    "default": {"cpu": (2, 1, 1, 2, 1, 0)},
    "pocket-r1-cpu": {"cpu": (2, 1, 1, 2, 1, 0)},
    "deepseek-r1-2x8-h200": {"h200": (16, 1, 8, 2, 1, 8)},
    "deepseek-r1-4x8-h100": {"h100": (32, 1, 8, 4, 1, 8)},
    "deepseek-v2-lite-1x4": {"gpu": (4, 1, 4, 1, 1, 4)},
    "qwen3-30b-a3b-1x2": {"gpu": (2, 1, 2, 1, 1, 2)},
    "everything": {"h200": (16, 1, 8, 2, 2, 8), "h100-spot": (32, 1, 8, 4, 1, 8)},
}


def test_every_preset_has_its_sizes_written_down() -> None:
    assert set(SIZES) == set(ALL)


@pytest.mark.parametrize(
    ("preset", "pool"), [(preset, pool) for preset, pools in SIZES.items() for pool in pools]
)
def test_a_groups_pods_hold_its_ranks(preset: str, pool: str) -> None:
    data, tensor, a_pod, pods, groups, gpus = SIZES[preset][pool]
    objects = render(preset)
    group = workers(objects)[pool]
    (app,) = [a for a in serve_config(objects)["applications"] if a["name"].endswith(f"-{pool}")]
    settings = app["args"]["settings"]["group"]

    assert (settings["data_parallel"], settings["tensor_parallel"]) == (data, tensor)
    assert pods * a_pod == data
    assert group["replicas"] == group["minReplicas"] == groups * pods
    assert group["maxReplicas"] % pods == 0
    assert app["deployments"] == [{"name": "ranks", "num_replicas": groups * data}]

    # Ray's resources equal those of the pod and the sum of its ranks' requests.
    container = group["template"]["spec"]["containers"][0]
    start = group["rayStartParams"]
    assert (
        int(container["resources"]["limits"].get("nvidia.com/gpu", "0"))
        == gpus
        == a_pod * tensor * bool(gpus)
    )
    assert start["num-gpus"] == str(gpus)
    options = build(app["args"])._bound_deployment.ray_actor_options
    assert options["num_gpus"] == (tensor if gpus else 0)
    assert a_pod * options["num_cpus"] == int(start["num-cpus"])
    assert options["resources"] == {f"pool-{pool}": 0.001}
    # The shell removes the quotes; KubeRay trims them and reads JSON.
    assert shlex.split(start["resources"]) == [start["resources"].strip("'")]
    assert json.loads(start["resources"].strip("'\"` ")) == {f"pool-{pool}": 1}


@pytest.mark.parametrize("preset", ALL)
def test_the_settings_file_loads(preset: str, tmp_path: Any) -> None:
    objects = render(preset)
    file = tmp_path / "settings.yaml"
    file.write_text(find(objects, "ConfigMap", "-settings")["data"]["settings.yaml"], "utf-8")
    settings = load_settings(file)
    first = next(iter(SIZES[preset].values()))
    assert (settings.group.data_parallel, settings.group.tensor_parallel) == first[:2]
    assert settings.router.host == "0.0.0.0"
    deployment = find(objects, "Deployment", "-router")["spec"]["template"]["spec"]
    grace = deployment["terminationGracePeriodSeconds"]
    pause = deployment["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace >= pause + settings.router.drain_timeout + 5


@pytest.mark.parametrize("preset", ALL)
def test_a_router_would_start_with_these_settings(preset: str, tmp_path: Any) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        find(render(preset), "ConfigMap", "-settings")["data"]["settings.yaml"], "utf-8"
    )
    # Rejects ports open to the network without keys, TLS or join credentials.
    require_secure_bind(load_settings(file))


def test_ray_keeps_no_memory_for_objects() -> None:
    cluster = find(render("everything"), "RayService")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        store = int(group["rayStartParams"]["object-store-memory"])
        assert OBJECT_STORE_BYTES <= store <= 2 * OBJECT_STORE_BYTES


def test_settings_of_ones_own_win_over_the_defaults() -> None:
    settings = settings_of(render("everything"))
    assert settings["admission"]["queue_requests"] == 4096
    assert settings["admission"]["redis_url"] == "rediss://redis:6379/0"
    assert settings["ledger"] == {
        "directory": "/var/lib/moe-serving/ledger",
        "database_url": "postgresql://moe@postgres:5432/ledger",
        "database_password_file": "/etc/moe-serving/ledger/password",
        "tariff_file": "/etc/moe-serving/settings/tariff.yaml",
        "gpu_hour_price": 2.5,
    }
    assert settings["link"]["max_frame_bytes"] == 2**27
    config = serve_config(render("everything"))["applications"][0]["args"]["settings"]
    assert config["link"]["max_frame_bytes"] == 2**27
    assert "admission" not in config


@pytest.mark.parametrize("preset", ALL)
def test_serve_takes_the_configuration(preset: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(serve_config(render(preset)))
    assert len({app.name for app in schema.applications}) == len(SIZES[preset])
    for app in schema.applications:
        assert app.external_scaler_enabled
        deployment = build(app.args)._bound_deployment
        assert deployment.name == app.deployments[0].name
        size = deployment._deployment_config.gang_scheduling_config.gang_size
        assert app.deployments[0].num_replicas % size == 0


@pytest.mark.parametrize("preset", ALL)
def test_serve_makes_of_it_what_is_meant(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply a configuration as Serve's controller does, without a cluster."""
    from ray.serve._private import deploy_utils
    from ray.serve._private.application_state import override_deployment_info
    from ray.serve.schema import ServeDeploySchema

    # The real check would start Ray.
    runtime = mock.MagicMock()
    runtime.get_runtime_context.return_value.get_job_id.return_value = "01"
    monkeypatch.setattr(deploy_utils, "ray", runtime)
    schema = ServeDeploySchema.model_validate(serve_config(render(preset)))
    sizes = SIZES[preset].items()
    for app, (pool, (data, _, _, _, groups, _)) in zip(schema.applications, sizes, strict=True):
        built = build(app.args)._bound_deployment
        arguments = deploy_utils.get_deploy_args(
            built.name,
            built._replica_config,
            ingress=True,
            deployment_config=built._deployment_config,
            version="1",
            route_prefix="/",
        )
        info = deploy_utils.deploy_args_to_deployment_info(**arguments, app_name=app.name)
        final = override_deployment_info({built.name: info}, app)[built.name]
        assert final.deployment_config.num_replicas == groups * data
        assert final.deployment_config.gang_scheduling_config.gang_size == data
        assert final.replica_config.ray_actor_options["resources"] == {f"pool-{pool}": 0.001}


@pytest.mark.parametrize("preset", ALL)
def test_serves_proxies_have_a_route_for_each_application(preset: str) -> None:
    """Without a route, /-/healthz returns 503, and KubeRay's worker pods are never ready."""
    config = serve_config(render(preset))
    routes = [app["route_prefix"] for app in config["applications"]]
    assert routes == [f"/{app['name']}" for app in config["applications"]]
    assert len(set(routes)) == len(routes)
    assert config["proxy_location"] == "EveryNode"
    (port,) = {
        port["containerPort"]
        for pod in workers(render(preset)).values()
        for port in pod["template"]["spec"]["containers"][0]["ports"]
        if port["name"] == "serve"
    }
    assert config["http_options"] == {"host": "0.0.0.0", "port": port}


@pytest.mark.parametrize("preset", ALL)
def test_routers_and_ranks_are_told_the_same(preset: str) -> None:
    objects = render(preset)
    routers = settings_of(objects)
    for app in serve_config(objects)["applications"]:
        ranks = app["args"]["settings"]
        for group in ("model", "engine", "link", "platform"):
            assert routers[group] == ranks[group]
        assert routers["router"]["reasoning_parser"] == ranks["router"]["reasoning_parser"]
        assert ranks["ray"]["app_name"] == app["name"]


@pytest.mark.parametrize("preset", ALL)
def test_ranks_dial_the_headless_service(preset: str) -> None:
    objects = render(preset)
    service = find(objects, "Service", "-join")
    (port,) = service["spec"]["ports"]
    assert service["spec"]["clusterIP"] == "None"
    # A router is ready only when ranks have joined: its address must exist before.
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert settings_of(objects)["link"]["routers"] == [
        f"dns:///{service['metadata']['name']}.prod.svc.cluster.local:{port['port']}"
    ]


def test_gpu_pods_go_where_they_belong() -> None:
    pools = workers(render("everything"))
    first = pools["h200"]["template"]["spec"]
    assert first["nodeSelector"] == {"gpu": "h200"}
    assert {t["key"] for t in first["tolerations"]} == {"reserved", "nvidia.com/gpu"}
    assert first["runtimeClassName"] == "nvidia"
    limits = first["containers"][0]["resources"]["limits"]
    assert limits["rdma/ib"] == "8"
    assert limits["hugepages-2Mi"] == "5Gi"
    assert set(first["affinity"]) == {"nodeAffinity", "podAffinity"}
    (term,) = first["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "topology.k8s.aws/network-node-layer-2"
    assert term["labelSelector"]["matchLabels"]["moe-serving/pool"] == "h200"
    environment = {e["name"]: e.get("value") for e in first["containers"][0]["env"]}
    assert environment["NVSHMEM_IB_ENABLE_IBGDA"] == "1"
    assert environment["NCCL_IB_HCA"] == "=mlx5_0,mlx5_1"
    assert environment["NCCL_DEBUG"] == "WARN"

    spot = pools["h100-spot"]["template"]["spec"]
    assert spot["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert "eks.amazonaws.com/capacityType" in {t["key"] for t in spot["tolerations"]}
    assert spot["hostNetwork"] is True
    assert spot["containers"][0]["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"
    assert "preferredDuringSchedulingIgnoredDuringExecution" in spot["affinity"]["podAffinity"]


def test_cpu_pods_have_nothing_of_gpus() -> None:
    text = json.dumps(workers(render("default")))
    assert "nvidia" not in text
    assert "IPC_LOCK" not in text


@pytest.mark.parametrize("preset", ALL)
def test_the_head_runs_no_rank(preset: str) -> None:
    head = find(render(preset), "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"


def test_ray_is_closed_and_outlives_its_head() -> None:
    cluster = find(render("everything"), "RayService")["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert "valueFrom" in cluster["gcsFaultToleranceOptions"]["redisPassword"]
    # Set from the start: a name added with the autoscaler would start a second cluster.
    assert find(render(), "RayService")["spec"]["rayClusterConfig"]["authOptions"] == {
        "mode": "token",
        "secretName": "moe-serving-ray",
    }


@pytest.mark.parametrize("preset", ALL)
def test_pods_have_no_rights_that_they_do_not_need(preset: str) -> None:
    for name, spec in pod_specs(render(preset)).items():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        autoscaler = name.endswith("-autoscaler")
        assert spec["automountServiceAccountToken"] is autoscaler
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert "privileged" not in security
            assert {"requests", "limits"} <= set(container["resources"])
            writable = {m["mountPath"] for m in container.get("volumeMounts", ())}
            assert "/tmp" in writable or name.endswith("-test") or "-prepull-" in name


def test_the_autoscalers_rights_are_the_least() -> None:
    objects = render("everything")
    # The calls of serving/autoscaler: the worker group's replicas, its pods, the Lease, the nodes.
    assert find(objects, "Role")["rules"] == [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayservices"],
            "resourceNames": ["serve-moe-serving"],
            "verbs": ["get", "patch"],
        },
        # Without a name: KubeRay generates it.
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        # The chart creates the Lease, so no create permission is needed.
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["serve-moe-serving-autoscaler-leader"],
            "verbs": ["get", "patch"],
        },
        {
            "apiGroups": ["policy"],
            "resources": ["poddisruptionbudgets"],
            "resourceNames": ["serve-moe-serving-h200"],
            "verbs": ["get", "patch"],
        },
    ]
    assert find(objects, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}
    ]
    kinds = {item["kind"] for item in render()}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert "ServiceAccount" not in kinds


def test_the_right_to_a_cluster_that_is_named_is_limited_to_it() -> None:
    objects = render("everything", autoscaler={"cluster": "serve-abcde"})
    custom = [rule for rule in find(objects, "Role")["rules"] if rule["apiGroups"] == ["ray.io"]]
    assert custom == [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayclusters"],
            "resourceNames": ["serve-abcde"],
            "verbs": ["get", "patch"],
        }
    ]


def test_the_autoscaler_follows_the_services_active_cluster() -> None:
    objects = render("everything")
    text = find(objects, "ConfigMap", "-settings")["data"]["autoscaler.yaml"]
    given = yaml.safe_load(text)["autoscaler"]["kubernetes"]
    assert given["service"] == find(objects, "RayService")["metadata"]["name"]
    assert given["cluster"] == ""


@pytest.mark.parametrize("tls", ["secret", "elsewhere"])
def test_the_autoscaler_tells_every_router(tls: str) -> None:
    """Behind a Service with a cluster IP, only one router would receive a drain."""
    objects = render("everything", security={"tls": {"mode": tls}})
    scaling = yaml.safe_load(find(objects, "ConfigMap", "-settings")["data"]["autoscaler.yaml"])[
        "autoscaler"
    ]
    (drain,), (rest,) = scaling["drain_addresses"], scaling["routers"]
    assert drain == "dns:///serve-moe-serving-routers.prod.svc:50051"
    assert rest == "dns:///serve-moe-serving-routers.prod.svc:8000"
    assert ("ca_file" in scaling) is (tls == "secret"), "REST is read over HTTPS exactly with it"
    service = find(objects, "Service", "-routers")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert {entry["name"]: entry["port"] for entry in service["ports"]} == {
        "rest": 8000,
        "grpc": 50051,
    }
    pods = find(objects, "Deployment", "-router")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= pods.items()


def test_the_autoscaler_is_told_the_worker_group() -> None:
    objects = render("everything")
    text = find(objects, "ConfigMap", "-settings")["data"]["autoscaler.yaml"]
    settings = yaml.safe_load(text)
    scaling = settings["autoscaler"]
    group = workers(objects)[scaling["kubernetes"]["worker_group"]]
    assert (
        scaling["max_groups"] * scaling["kubernetes"]["workers_per_group"] == group["maxReplicas"]
    )
    assert settings["ray"]["app_name"] == serve_config(objects)["applications"][0]["name"]
    assert scaling["kubernetes"]["lease"] == find(objects, "Lease")["metadata"]["name"]
    assert scaling["gpus_per_group"] == 16
    assert scaling["ttft_slo"] == 1.5
    spec = find(objects, "Deployment", "-autoscaler")["spec"]["template"]["spec"]
    files = {value for key, value in scaling.items() if key.endswith("_file")}
    assert files == set(_mounted(spec)) & files != set()


def test_the_autoscalers_settings_load(tmp_path: Any) -> None:
    file = tmp_path / "autoscaler.yaml"
    data = find(render("everything"), "ConfigMap", "-settings")["data"]
    file.write_text(data["autoscaler.yaml"], "utf-8")
    loaded = load_settings(file).model_dump()["autoscaler"]
    assert loaded["kubernetes"]["workers_per_group"] == 2


@pytest.mark.parametrize("preset", ALL)
def test_a_pod_of_ranks_has_time_to_drain(preset: str) -> None:
    for group in workers(render(preset)).values():
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:-1] == ["moe-serving", "leave", "--timeout"]
        # In addition to the hook: the time that Serve allows a replica to stop.
        assert spec["terminationGracePeriodSeconds"] >= float(command[-1]) + 5 + STOP_TIMEOUT


STREAM: dict[str, Any] = {
    "path": "/models/r1",
    "volume": {"type": "claim", "claimName": "configs"},
    "stream": {
        "url": "s3://models/r1",
        "concurrency": 32,
        "existingSecret": "s3-keys",
        "serviceAccount": "reader",
    },
}


def test_streamed_weights_reach_the_engines() -> None:
    objects = render(model=STREAM)
    (application,) = serve_config(objects)["applications"]
    expected = {
        "load_format": "runai_streamer",
        "model_weights": "s3://models/r1",
        "model_loader_extra_config": {"concurrency": 32},
    }
    assert application["args"]["settings"]["engine"]["args"] == expected
    # Config and tokenizer are local, for ranks and routers alike.
    assert application["args"]["settings"]["model"]["path"] == "/models/r1"
    assert settings_of(objects)["model"]["path"] == "/models/r1"
    spec = workers(objects)["cpu"]["template"]["spec"]
    assert spec["serviceAccountName"] == "reader"
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    egress = find(objects, "NetworkPolicy", "-ray")["spec"]["egress"]
    assert {"protocol": "TCP", "port": 443} in [p for rule in egress for p in rule.get("ports", ())]


def test_without_a_stream_ranks_reach_nothing_outside() -> None:
    objects = render()
    spec = workers(objects)["cpu"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert "envFrom" not in spec["containers"][0]
    egress = find(objects, "NetworkPolicy", "-ray")["spec"]["egress"]
    assert not [peer for rule in egress for peer in rule["to"] if "ipBlock" in peer]


def test_every_object_with_a_stream_is_valid() -> None:
    for item in render(model=STREAM):
        assert schemas.problems(item, "1.36") == []


@pytest.mark.parametrize("preset", ALL)
def test_no_secret_is_rendered(preset: str) -> None:
    objects = render(preset)
    assert not [item for item in objects if item["kind"] == "Secret"]
    for name, spec in pod_specs(objects).items():
        for container in spec["containers"]:
            for variable in container.get("env", ()):
                word = variable["name"].lower()
                secret = any(part in word for part in ("password", "token", "secret"))
                assert not (secret and "value" in variable), f"{name}: {variable['name']}"


@pytest.mark.parametrize("preset", ALL)
def test_the_files_that_settings_name_are_mounted(preset: str) -> None:
    objects = render(preset)
    router = find(objects, "Deployment", "-router")["spec"]["template"]["spec"]
    given = {"router": (settings_of(objects), router, {"security", "admission"})}
    for app, group in zip(
        serve_config(objects)["applications"], workers(objects).values(), strict=True
    ):
        given[app["name"]] = (app["args"]["settings"], group["template"]["spec"], {"link"})
    for settings, spec, groups in given.values():
        wanted = {
            value
            for group in groups & set(settings)
            for key, value in settings[group].items()
            if key.endswith("_file")
        }
        assert wanted
        assert wanted <= set(_mounted(spec)) | {w for w in wanted if _whole(spec, w)}
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == names


def _mounted(spec: dict[str, Any]) -> Iterator[str]:
    """Yield the files of single items of Secrets."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in spec["containers"][0]["volumeMounts"]:
        for item in volumes[mount["name"]].get("secret", {}).get("items", ()):
            yield f"{mount['mountPath']}/{item['path']}"


def _whole(spec: dict[str, Any], file: str) -> bool:
    """Return whether a whole TLS Secret is mounted where ``file`` is."""
    folder, _, name = file.rpartition("/")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return name in {"tls.crt", "tls.key", "ca.crt"} and any(
        mount["mountPath"] == folder
        and "items" not in volumes[mount["name"]].get("secret", {"items": 0})
        for mount in spec["containers"][0]["volumeMounts"]
    )


def test_ranks_do_not_get_the_routers_key() -> None:
    objects = render(security={"joinTls": {"enabled": True, "existingSecret": "join-tls"}})
    spec = workers(objects)["cpu"]["template"]["spec"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "join-tls"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


@pytest.mark.parametrize("preset", ALL)
def test_probes_mean_what_they_say(preset: str) -> None:
    objects = render(preset)
    router = find(objects, "Deployment", "-router")["spec"]["template"]["spec"]["containers"][0]
    scheme = "HTTPS" if "tls_cert_file" in settings_of(objects)["security"] else "HTTP"
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert router[probe]["httpGet"] == {"path": path, "port": "rest", "scheme": scheme}


def test_insecure_leaves_all_secrets_out() -> None:
    objects = render(security={"insecure": True})
    text = json.dumps(objects)
    assert "secretName" not in text
    assert settings_of(objects)["security"] == {"insecure": True}


def test_budgets_are_integers_that_leave_a_group() -> None:
    objects = render("everything")
    budgets = {
        item["metadata"]["name"].removeprefix("serve-moe-serving-"): item["spec"]
        for item in objects
        if item["kind"] == "PodDisruptionBudget"
    }
    assert budgets["router"]["maxUnavailable"] == 1
    # The autoscaler sets it when the number of groups changes; until then, evictions are rejected.
    assert "minAvailable" not in budgets["h200"]
    assert "maxUnavailable" not in budgets["h200"]
    assert budgets["h100-spot"]["minAvailable"] == 4
    # Two groups of two pods: one pod, and thus one group, can be evicted. One group: none can.
    fixed = find(
        render("everything", autoscaler={"enabled": False}), "PodDisruptionBudget", "-h200"
    )
    assert fixed["spec"]["minAvailable"] == 3
    single = find(render("deepseek-r1-2x8-h200"), "PodDisruptionBudget", "-h200")
    assert single["spec"]["minAvailable"] == 2


@pytest.mark.parametrize("preset", ALL)
def test_budgets_services_and_policies_select_pods_that_exist(preset: str) -> None:
    objects = render(preset)
    labels = [
        item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] == "Deployment"
    ]
    labels += [item["metadata"]["labels"] for item in objects if item["kind"] == "Pod"]
    labels += [
        item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] in {"DaemonSet", "Job"}
    ]
    cluster = find(objects, "RayService")["spec"]["rayClusterConfig"]
    labels.append(cluster["headGroupSpec"]["template"]["metadata"]["labels"])
    labels += [g["template"]["metadata"]["labels"] for g in cluster["workerGroupSpecs"]]
    for item in objects:
        selector = (
            item["spec"]["selector"]
            if item["kind"] == "Service"
            else item["spec"]["selector"]["matchLabels"]
            if item["kind"] in {"PodDisruptionBudget", "Deployment", "DaemonSet"}
            else None
        )
        if selector is not None:
            assert any(selector.items() <= pod.items() for pod in labels), item["metadata"]["name"]


def test_the_test_asks_readyz() -> None:
    pod = find(render(), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    script = pod["spec"]["containers"][0]["args"][0]
    compile(script, "test", "exec")
    assert "https://serve-moe-serving-rest.prod.svc:8000/readyz" in script


def weights_job(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (job,) = [
        item
        for item in objects
        if item["kind"] == "Job"
        and item["metadata"]["labels"]["app.kubernetes.io/component"] == "weights"
    ]
    return job


def test_weights_are_fetched_once_and_waited_for() -> None:
    objects = render("everything")
    job = weights_job(objects)["spec"]["template"]["spec"]
    (fetch,) = job["containers"]
    source = ["deepseek-ai/DeepSeek-R1", "/models/r1", "--revision"]
    assert fetch["args"][:5] == ["weights", "fetch", *source]
    (mount,) = [m for m in fetch["volumeMounts"] if m["name"] == "model"]
    assert "readOnly" not in mount
    waiting = pod_specs(objects)
    for name in ("serve-moe-serving-router", "pool h200", "pool h100-spot"):
        (first,) = waiting[name]["initContainers"]
        assert first["args"][:5] == ["weights", "wait", *source]
        (mount,) = [m for m in first["volumeMounts"] if m["name"] == "model"]
        assert mount["readOnly"] is True
    for spec in pod_specs(render("deepseek-r1-2x8-h200")).values():
        assert "initContainers" not in spec


@pytest.mark.parametrize(
    ("values", "same"),
    [
        pytest.param({"router": {"replicas": 5}}, True, id="nothing-of-it"),
        pytest.param({"model": {"download": {"revision": "f" * 40}}}, False, id="revision"),
        pytest.param({"image": {"router": {"tag": "2"}}}, False, id="image"),
        pytest.param({"commonLabels": {"a": "b"}}, False, id="labels"),
        pytest.param({"commonAnnotations": {"a": "b"}}, False, id="annotations"),
        pytest.param({"security": {"runAsUser": 2000}}, False, id="user"),
        pytest.param(
            {"model": {"download": {"resources": {"limits": {"memory": "9Gi"}}}}},
            False,
            id="resources",
        ),
        pytest.param({"image": {"pullSecrets": ["other"]}}, False, id="pull-secret"),
    ],
)
def test_a_job_with_other_pods_is_another_job(values: dict[str, Any], same: bool) -> None:
    """The API server rejects changes to a Job's pods; Helm would attempt one at each upgrade."""
    before, after = (
        next(i for i in objects if i["kind"] == "Job" and "-weights-" in i["metadata"]["name"])
        for objects in (render("everything"), render("everything", **values))
    )
    assert (before["spec"] == after["spec"]) is same
    assert (before["metadata"]["name"] == after["metadata"]["name"]) is same


def test_pool_names_are_no_part_of_another_pools_application() -> None:
    apps = [app["name"] for app in serve_config(render("everything"))["applications"]]
    assert apps == ["serve-moe-serving-h200", "serve-moe-serving-h100-spot"]
