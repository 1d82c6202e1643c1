"""status --kube against a fake API server, through the official client."""

import asyncio
import http.server
import json
import threading
from pathlib import Path

import pytest
import yaml

from serving.autoscaler.actuators.kubernetes_api import current_namespace
from serving.cli.main import main
from tests.kube import objects, rbac
from tests.kube.server import KubeServer

RANK = {
    "pid": 1, "local_expert_ids": [], "expert_tokens": [], "inflight_requests": 0,
    "running_requests": 0, "waiting_requests": 0, "prompt_tokens_total": 0,
    "generated_tokens_total": 0, "resident_bytes": 0,
}  # fmt: skip


def group(name, *nodes, state="ready"):
    ranks = [RANK | {"rank": number, "node": node} for number, node in enumerate(nodes)]
    return {
        "group_id": name, "state": state, "reason": "", "world_size": len(nodes),
        "total_experts": 16, "app": f"cluster/{name}", "ranks": ranks,
    }  # fmt: skip


@pytest.fixture
def router():
    """A router that reports the groups in a list."""
    groups = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"model": "m", "inflight_requests": 0, "groups": groups}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield groups, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server():
    with KubeServer(("default", "prod", "other")) as server:
        yield server


@pytest.fixture
def ask(server, router, tmp_path, monkeypatch, capsys):
    """Run the command in a thread, as a user of this token, in namespace prod."""

    async def run(*words, token=rbac.ADMIN_TOKEN):
        server.kubeconfig(tmp_path / "kubeconfig", token, namespace="prod")
        code = await asyncio.to_thread(main, ["status", "--kube", "--url", router[1], *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return run


def write_kubeconfig(file, url, **context):
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"} | context}],
            }
        )
    )


def put_pod(server, name, ip, node, namespace="prod", kind="worker", **status):
    labels = objects.ray_labels("r1-abcde", "h200", kind)
    server.create(objects.pod(name, ip, node, namespace=namespace, labels=labels, **status))


async def test_each_rank_has_its_pod_and_node(server, router, ask):
    router[0].append(group("g0", "10.0.0.1", "10.0.0.1", "10.0.0.2"))
    put_pod(server, "w1", "10.0.0.1", "node-a")
    put_pod(server, "w2", "10.0.0.2", "node-b")
    put_pod(server, "head", "10.0.0.9", "node-c", kind="head")
    put_pod(server, "other", "10.0.0.2", "node-x", namespace="default")
    code, out, err = await ask()
    assert (code, err) == (0, "")
    assert "2 Ray pods in namespace prod" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["g0", "ready", "0/3", "w1", "ready", "node-a", "h200", "r1-abcde"] in rows
    assert ["1/3", "w1", "ready", "node-a", "h200", "r1-abcde"] in rows
    assert ["2/3", "w2", "ready", "node-b", "h200", "r1-abcde"] in rows
    assert "head" not in out


async def test_pods_without_a_rank_and_ranks_without_a_pod_are_shown(server, router, ask):
    router[0].append(group("g0", "10.0.0.7", state="joining"))
    put_pod(server, "w1", "", "")
    put_pod(
        server,
        "w2",
        "10.0.0.2",
        "node-b",
        conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}],
    )
    code, out, _ = await ask()
    assert code == 0
    assert "no pod has address 10.0.0.7" in out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "- no rank w1 pending not scheduled h200 r1-abcde" in rows
    assert "- no rank w2 Preempted node-b h200 r1-abcde" in rows


async def test_the_namespace_can_be_named(server, router, ask):
    router[0].append(group("g0", "10.0.0.1"))
    put_pod(server, "w1", "10.0.0.1", "node-a", namespace="other")
    _, out, _ = await ask("--namespace", "other")
    assert "w1" in out


async def test_for_programs(server, router, ask):
    router[0].append(group("g0", "10.0.0.1"))
    put_pod(server, "w1", "10.0.0.1", "node-a")
    put_pod(server, "w2", "10.0.0.2", "node-b")
    _, out, _ = await ask("--json")
    first, second = json.loads(out)["placements"]
    assert (first["group_id"], first["rank"], first["pod"]["node"]) == ("g0", 0, "node-a")
    assert (second["group_id"], second["pod"]["name"]) == (None, "w2")


@pytest.mark.parametrize("known", [True, False], ids=["403", "401"])
async def test_a_right_that_is_missing_is_named(server, ask, known):
    if known:
        for item in objects.service_account("viewer", "prod"):
            server.create(item)
    code, _, err = await ask(token=rbac.service_account_token("prod", "viewer"))
    assert code == 1
    assert ("403" if known else "401") in err
    assert "--kube requires permission to list pods in namespace prod" in err
    assert "kubectl auth can-i list pods -n prod" in err


async def test_the_right_to_list_pods_is_enough(server, router, ask):
    router[0].append(group("g0", "10.0.0.1"))
    put_pod(server, "w1", "10.0.0.1", "node-a")
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    for item in objects.service_account("viewer", "prod", rule):
        server.create(item)
    token = rbac.service_account_token("prod", "viewer")
    code, out, _ = await ask(token=token)
    assert code == 0
    assert "node-a" in out
    code, _, err = await ask("--namespace", "other", token=token)
    assert code == 1
    assert "--kube requires permission to list pods in namespace other" in err


async def test_no_cluster_is_one_clear_line(router, ask, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, _, err = await ask()
    assert code == 1
    assert "error: status --kube: no cluster is configured" in err


async def test_an_api_server_that_is_away_is_one_clear_line(router, ask, monkeypatch, tmp_path):
    write_kubeconfig(tmp_path / "away", "http://127.0.0.1:1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "away"))
    code, _, err = await ask()
    assert code == 1
    assert "list pods failed 2 times" in err


@pytest.mark.parametrize(
    ("own", "context", "expected"),
    [
        pytest.param("mine", {"namespace": "prod"}, "mine", id="in-a-pod"),
        pytest.param(None, {"namespace": "prod"}, "prod", id="kubectl"),
        pytest.param(None, {}, "default", id="kubectl-without"),
        pytest.param(None, None, "default", id="nothing"),
    ],
)
def test_the_namespace(
    own: str | None,
    context: dict[str, str] | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    if context is not None:
        write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", **context)
    file = tmp_path / "namespace"
    if own is not None:
        file.write_text(own)
    assert current_namespace(file) == expected
