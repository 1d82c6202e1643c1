"""A fake of the scaling part of Ray Serve's REST API."""

import json

import httpx

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.ray_serve import DEPLOYMENT

APP = "moe-serving"


class ServeApi:
    """One application; replicas change at once; numbers that are not whole gangs are ignored."""

    def __init__(self, replicas: int = 4, gang: int = 2):
        self.replicas = replicas
        self.gang = gang
        self.requests: list[tuple[str, str, object]] = []
        self.tokens: set[str | None] = set()
        self.status = 200
        self.error: Exception | None = None
        self.only_posts_fail = False
        self.nodes: list[str | None] = []
        """Addresses of the replicas; None: not placed yet."""

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.requests.append((request.method, request.url.path, body))
        self.tokens.add(request.headers.get("authorization"))
        if request.method == "POST" or not self.only_posts_fail:
            if self.error:
                raise self.error
            if self.status != 200:
                return httpx.Response(self.status, json={"error": "said by Ray"})
        if request.method == "GET" and request.url.path == "/api/serve/applications/":
            replicas = [
                {"replica_id": "r", "state": "STARTING", "node_ip": node} for node in self.nodes
            ]
            ranks = {"target_num_replicas": self.replicas, "replicas": replicas}
            app = {"status": "RUNNING", "deployments": {DEPLOYMENT: ranks}}
            return httpx.Response(200, json={"applications": {APP: app}})
        wanted = f"/api/v1/applications/{APP}/deployments/{DEPLOYMENT}/scale"
        if request.method == "POST" and request.url.path == wanted:
            count = body["target_num_replicas"]
            if count % self.gang == 0:
                self.replicas = count
            return httpx.Response(200, json={"message": "accepted"})
        return httpx.Response(404, json={"error": "not found"})


class Groups:
    """Groups as the routers report them, with the recorded drains and restores."""

    def __init__(self, *groups):
        self.living = list(groups)
        self.calls: list[tuple[str, str]] = []
        self.silent = False
        """No router responds."""

    async def groups(self):
        if self.silent:
            raise ActuatorError("no router responds")
        return tuple(self.living)

    async def drain(self, group_id, reason):
        self.calls.append(("drain", group_id))
        return True

    async def restore(self, group_id):
        self.calls.append(("restore", group_id))
