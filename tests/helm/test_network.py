"""Allowed connections, evaluated from the rendered NetworkPolicies as in Kubernetes."""

from typing import Any

import pytest

from tests.helm.chart import PRESETS, find, render

ALL = ["default", *PRESETS]
INSTANCE = {"app.kubernetes.io/instance": "serve"}
PODS = {
    name: INSTANCE | {"app.kubernetes.io/component": name}
    for name in ("router", "ray-head", "ranks", "autoscaler", "test")
}
PODS["client"] = {"app": "client"}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a label selector matches a pod."""
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def allowed(objects: list[dict[str, Any]], source: str, target: str, port: int) -> bool:
    """Return whether the policies allow pods ``source`` to connect to ``port`` of ``target``."""
    return _side(objects, "Egress", source, target, port) and _side(
        objects, "Ingress", target, source, port
    )


def _side(objects: list[dict[str, Any]], direction: str, own: str, other: str, port: int) -> bool:
    policies = [
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy"
        and direction in item["spec"]["policyTypes"]
        and matches(item["spec"]["podSelector"], PODS[own])
    ]
    if not policies:
        return True  # a pod that no policy selects is open
    rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    for policy in policies:
        for rule in policy.get(rules) or ():
            ports = [entry["port"] for entry in rule.get("ports", ())]
            near = any(
                "podSelector" in peer
                and "namespaceSelector" not in peer
                and matches(peer["podSelector"], PODS[other])
                for peer in rule[peers]
            )
            if near and (not ports or port in ports):
                return True
    return False


PATHS = [
    # from, to, port, allowed
    ("client", "router", 8000, True),
    ("client", "router", 50051, True),
    ("client", "router", 50052, False),
    ("client", "ray-head", 8265, False),
    ("client", "ray-head", 6379, False),
    ("client", "ranks", 8000, False),
    ("ranks", "router", 50052, True),
    ("ranks", "router", 8000, False),
    ("ray-head", "router", 50052, False),
    ("ranks", "ranks", 29500, True),
    ("ranks", "ray-head", 6379, True),
    ("ray-head", "ranks", 10002, True),
    ("router", "router", 50051, True),
    ("router", "router", 50052, False),
    ("router", "ranks", 29500, False),
    ("router", "ray-head", 8265, False),
    ("test", "router", 8000, True),
    ("test", "router", 50052, False),
    ("test", "ray-head", 8265, False),
]


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize(("source", "target", "port", "expected"), PATHS)
def test_paths(preset: str, source: str, target: str, port: int, expected: bool) -> None:
    assert allowed(render(preset), source, target, port) is expected


@pytest.mark.parametrize(
    ("target", "port", "expected"),
    [
        ("router", 8000, True),
        ("router", 50051, True),
        ("router", 50052, False),
        ("ray-head", 8265, True),
        ("ray-head", 6379, False),
    ],
)
def test_the_autoscaler_reads_routers_and_talks_to_serve(
    target: str, port: int, expected: bool
) -> None:
    assert allowed(render("everything"), "autoscaler", target, port) is expected


def test_without_policies_everything_is_open() -> None:
    objects = render(networkPolicy={"enabled": False})
    assert not [item for item in objects if item["kind"] == "NetworkPolicy"]
    assert allowed(objects, "client", "ray-head", 6379)


@pytest.mark.parametrize("preset", ALL)
def test_ports_of_policies_services_and_containers_agree(preset: str) -> None:
    objects = render(preset)
    container = find(objects, "Deployment", "-router")["spec"]["template"]["spec"]["containers"][0]
    named = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    for service in ("rest", "grpc", "join"):
        (entry,) = find(objects, "Service", f"-{service}")["spec"]["ports"]
        assert named[entry["targetPort"]] == entry["port"]
    for entry in find(objects, "Service", "-routers")["spec"]["ports"]:
        assert named[entry["targetPort"]] == entry["port"]
    policy = find(objects, "NetworkPolicy", "-router")["spec"]
    opened = {p["port"] for rule in policy["ingress"] for p in rule["ports"]}
    assert opened == set(named.values())


def test_other_ports_move_everywhere() -> None:
    objects = render(router={"ports": {"rest": 9000, "grpc": 9001, "join": 9002}})
    assert allowed(objects, "client", "router", 9000)
    assert allowed(objects, "ranks", "router", 9002)
    assert not allowed(objects, "client", "router", 8000)


def test_pods_that_use_the_hosts_network_are_known() -> None:
    # No NetworkPolicy applies to them; see deploy/docs/kubernetes.md.
    groups = find(render("everything"), "RayService")["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    host = [g["groupName"] for g in groups if g["template"]["spec"].get("hostNetwork")]
    assert host == ["h100-spot"]
