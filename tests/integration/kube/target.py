"""The target of the contract tests: the fake, or a real cluster that MOE_TEST_KUBECONFIG names."""

import base64
import json
import os
import ssl
import tempfile
import uuid
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.kube.server import KubeServer
from tests.support.waiting import PATIENCE

Item = dict[str, Any]
JSON = "application/json"


class Target:
    """An API server, as an administrator, and a namespace for the test."""

    def __init__(self, config: Path, server: KubeServer | None = None):
        self.server = server
        """The fake; None: a real one."""
        self.namespace = f"contract-{uuid.uuid4().hex[:8]}"
        self._config = yaml.safe_load(config.read_text("utf-8"))
        self.client = self._client(self._named("users", "user"))
        self.send("POST", "/api/v1/namespaces", body=self.head("v1", "Namespace", self.namespace))

    def _named(self, plural: str, key: str) -> Item:
        current = self._config["current-context"]
        context = next(c["context"] for c in self._config["contexts"] if c["name"] == current)
        name = context[key]
        found: Item = next(one[key] for one in self._config[plural] if one["name"] == name)
        return found

    def _client(self, user: Item) -> httpx.Client:
        cluster = self._named("clusters", "cluster")
        verify: Any = True
        if cluster["server"].startswith("https"):
            verify = ssl.create_default_context(cafile=_file(cluster, "certificate-authority"))
            if certificate := _file(user, "client-certificate"):
                verify.load_cert_chain(certificate, _file(user, "client-key"))
        address = cluster["server"]
        if self.server is not None:
            address = self.server.url  # the token is sent in a header here
        token = user.get("token")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(
            base_url=address, headers=headers, verify=verify, trust_env=False, timeout=PATIENCE
        )

    def as_user(self, token: str) -> httpx.Client:
        """Return a client with another bearer token, and no certificate."""
        return self._client({"token": token})

    def send(
        self, method: str, path: str, body: Any = None, kind: str = JSON, **query: Any
    ) -> httpx.Response:
        """Send a request; ``{ns}`` in the path is the test's namespace."""
        return self.client.request(
            method,
            path.replace("{ns}", self.namespace),
            content=None if body is None else json.dumps(body),
            headers={"content-type": kind},
            params=query,
        )

    @staticmethod
    def head(api_version: str, kind: str, name: str, **more: Any) -> Item:
        metadata = {"name": name, **more.pop("metadata", {})}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}

    def close(self) -> None:
        self.send("DELETE", f"/api/v1/namespaces/{self.namespace}")
        self.client.close()


def _file(where: Item, key: str) -> str | None:
    """Return the path of a certificate or key that a kubeconfig has as a path or as data."""
    if key in where:
        return str(where[key])
    if f"{key}-data" not in where:
        return None
    with tempfile.NamedTemporaryFile("wb", delete=False, suffix=".pem") as file:
        file.write(base64.b64decode(where[f"{key}-data"]))
    return file.name


def real() -> Path | None:
    """Return the kubeconfig of a real cluster, if the environment names one."""
    named = os.environ.get("MOE_TEST_KUBECONFIG")
    return Path(named) if named else None
