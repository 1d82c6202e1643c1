"""Runs a rendered RayService on this machine and writes its observations as JSON.

python -m tests.e2e.kuberay.observing RAYSERVICE.yaml OUT.json
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.credentials import Access, access_of
from serving.client.rest import RestClient
from tests.e2e.kuberay import pods
from tests.e2e.kuberay.cluster import (
    HEAD,
    POLL,
    START,
    Dashboard,
    Pod,
    running,
    submitted,
    until,
)

HEALTHY_WITHIN = 120.0
"""Timeout for a proxy to answer 200 once the application runs, seconds."""
COMMAND_TIMEOUT = 300.0
REQUESTS = 200
"""Number of requests sent at the same time through one proxy."""
BIG_BODY = b"x" * (8 << 20)


@dataclass(slots=True)
class Router:
    """The router of the run."""

    url: str
    access: Access
    model: str

    def groups(self) -> dict[str, str]:
        """Return the state of each group by its id."""
        _, fleet = RestClient(self.url, self.access).get_json("/fleet", 10.0)
        return {group["group_id"]: group["state"] for group in fleet["groups"]}

    def ready(self) -> bool:
        """Return whether a group is ready."""
        with contextlib.suppress(Exception):
            return "ready" in self.groups().values()
        return False

    def answer(self) -> str:
        """Return an answer of the model."""
        request = GenerateRequest((Message("user", "What is 2+3?"),), max_tokens=256)
        options = GenerateOptions(self.model, temperature=0.0, timeout=60.0)
        answer = RestClient(self.url, self.access).generate(request, options)
        return "".join(delta.text for delta in answer)


def observe(
    started: Mapping[str, Pod], dashboard: Dashboard, config: Mapping[str, Any], router: Router
) -> dict[str, Any]:
    """Submit the configuration, probe and use the proxies, then remove the route."""
    seen: dict[str, Any] = {"put": dashboard.put(config)}
    (app,) = (item["name"] for item in config["applications"])
    seen["replicas"] = until(lambda: _running(dashboard, app), START, f"{app} RUNNING")
    with_ranks = sorted({replica["node_ip"] for replica in seen["replicas"]})
    seen["readiness"] = {
        address: _until_success(started[address], pods.WORKER_READINESS) for address in with_ranks
    }
    seen["probes"] = {address: _probes(pod) for address, pod in started.items()}
    until(router.ready, START, "a ready group")
    seen["groups"] = router.groups()
    worker = with_ranks[0]
    seen["refused"] = {address: _ask(address, app) for address in (*with_ranks, HEAD)}
    seen["websocket"] = asyncio.run(_websocket(worker, f"/{app}"))
    seen["burst"] = asyncio.run(_burst(f"http://{worker}:8000/{app}"))
    seen["answer"] = router.answer()
    seen["groups_after"] = router.groups()
    seen["replicas_after"] = _running(dashboard, app)
    seen["healthy_after"] = {
        address: started[address].execute(pods.WORKER_READINESS, COMMAND_TIMEOUT)
        for address in with_ranks
    }
    seen["without_route"] = _without_route(dashboard, config, with_ranks)
    return seen


def _running(dashboard: Dashboard, app: str) -> list[dict[str, str]] | None:
    """Return the replicas of a running application, or ``None``."""
    found = dashboard.applications().get(app)
    if found is None or found["status"] != "RUNNING":
        return None
    return [
        {"id": replica["replica_id"], "state": replica["state"], "node_ip": replica["node_ip"]}
        for deployment in found["deployments"].values()
        for replica in deployment["replicas"]
    ]


def _until_success(pod: Pod, command: tuple[str, ...]) -> dict[str, Any]:
    """Run a probe until it succeeds; return its last code and output and its number of failures."""
    deadline = time.monotonic() + HEALTHY_WITHIN
    failed = 0
    while True:
        code, output = pod.execute(command, COMMAND_TIMEOUT)
        if code == 0 or time.monotonic() >= deadline:
            return {"code": code, "said": output, "failed": failed}
        failed += 1
        time.sleep(POLL)


def _probes(pod: Pod) -> dict[str, Any]:
    """Return the results of the probes of all supported operator versions for a pod."""
    head = pod.address == HEAD
    commands = {"older": pods.OLDER_HEAD_HEALTH if head else pods.OLDER_WORKER_LIVENESS}
    gets = {"httpGet": pods.HTTP_GET} | ({"operator": pods.HEAD_SERVE_HEALTH} if head else {})
    return {name: pod.execute(command, COMMAND_TIMEOUT) for name, command in commands.items()} | {
        name: _get(f"http://{pod.address}:{port}{path}") for name, (port, path) in gets.items()
    }


def _get(url: str) -> tuple[int, str]:
    answer = httpx.get(url, timeout=COMMAND_TIMEOUT, trust_env=False)
    return answer.status_code, answer.text


def _ask(address: str, app: str) -> list[dict[str, Any]]:
    """Send one node's proxy requests of all kinds to the application's route, and elsewhere."""
    chat = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]}
    requests: Iterable[tuple[str, str, dict[str, Any]]] = (
        ("GET", f"/{app}", {}),
        ("HEAD", f"/{app}/", {}),
        ("OPTIONS", f"/{app}", {}),
        ("DELETE", f"/{app}/x", {}),
        ("POST", f"/{app}/v1/chat/completions", {"json": chat}),
        ("POST", f"/{app}", {"content": BIG_BODY}),
        ("POST", "/v1/chat/completions", {"json": chat}),
    )
    found = []
    with httpx.Client(base_url=f"http://{address}:8000", timeout=60, trust_env=False) as client:
        for method, path, content in requests:
            answer = client.request(method, path, **content)
            found.append(
                {
                    "request": f"{method} {path}",
                    "status": answer.status_code,
                    "type": answer.headers.get("content-type"),
                    "body": answer.text,
                }
            )
    return found


async def _burst(url: str) -> dict[str, int]:
    """Send many requests at once; return the number of answers by status."""
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        answers = await asyncio.gather(*(client.post(url, json={}) for _ in range(REQUESTS)))
    return dict(Counter(str(answer.status_code) for answer in answers))


async def _websocket(address: str, path: str) -> str:
    """Return the status line of the answer to a WebSocket handshake."""
    async with asyncio.timeout(COMMAND_TIMEOUT):
        reader, writer = await asyncio.open_connection(address, 8000)
        writer.write(
            f"GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\n"
            "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return line.decode().strip()


def _without_route(
    dashboard: Dashboard, config: Mapping[str, Any], nodes: list[str]
) -> dict[str, Any]:
    """Submit the configuration without routes; return what the proxies answer then."""
    bare = json.loads(json.dumps(config))
    for app in bare["applications"]:
        app["route_prefix"] = None
    status = dashboard.put(bare)[0]

    def answers() -> dict[str, Any] | None:
        found = {node: _get(f"http://{node}:8000/-/healthz") for node in nodes}
        return found if all(code != 200 for code, _ in found.values()) else None

    return {"put": status, "health": until(answers, HEALTHY_WITHIN, "proxies without a route")}


def main(rendered: Path, out: Path) -> None:
    """Start the RayService of a file and write the observations."""
    spec = yaml.safe_load(rendered.read_text("utf-8"))["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    with tempfile.TemporaryDirectory(prefix="moe-kr-") as name:
        with running(spec, Path(name)) as (started, token, settings):
            router = Router(
                f"http://127.0.0.1:{settings.router.rest_port}",
                access_of(settings.security.model_dump()),
                settings.model.name,
            )
            config = submitted(config, settings.link.token_file)
            seen = observe(started, Dashboard(token), config, router)
        out.write_text(json.dumps(seen, indent=1), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
