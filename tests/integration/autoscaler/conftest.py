"""Fixtures: a real Prometheus that scrapes a page of the test, and the fake API server."""

import contextlib
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from tests.integration.autoscaler.http_fake import HttpFake
from tests.integration.autoscaler.kube import SETTINGS
from tests.kube import rbac
from tests.kube.server import KubeServer
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE

TOOLS = Path(__file__).resolve().parents[3] / ".tools" / "prometheus"


class Page(HttpFake):
    """The page that Prometheus scrapes: ``text``, changeable at any time; None: status 503."""

    def __init__(self):
        self.text: str | None = ""
        super().__init__()

    def answer(self, path, sent):
        return (503, "") if self.text is None else (200, self.text)


class Prometheus:
    """A Prometheus process that scrapes ``target`` every ``interval``."""

    def __init__(self, folder: Path, target: str, interval: str = "200ms"):
        port = held_port()
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}\n"
            "scrape_configs:\n"
            f"- {{job_name: moe-routers, static_configs: [{{targets: ['{target}']}}]}}\n"
        )
        self.process = subprocess.Popen(
            [
                TOOLS / "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )

    def number(self, query: str) -> float | None:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(
                f"{self.url}/api/v1/query", params={"query": query}, timeout=PATIENCE
            )
            if answer.status_code == 200 and answer.json()["data"]["result"]:
                return float(answer.json()["data"]["result"][0]["value"][1])
        return None

    def wait(self, query: str, patience: float = PATIENCE) -> float:
        """Return the query's value once it is above 0."""
        end = time.monotonic() + patience
        while not (found := self.number(query)):
            assert time.monotonic() < end, f"{query} has no value above 0"
            time.sleep(0.05)
        return found

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def page():
    page = Page()
    yield page
    page.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, page):
    """Shared by the tests of a module: the first scrape takes 5 s."""
    if not (TOOLS / "prometheus").exists():
        pytest.skip("no Prometheus in .tools: .ci/tools fetches it and says if it cannot")
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), page.address)
    yield server
    server.stop()


class PatientApi(KubernetesApi):
    """A client without short timeouts: on a busy machine they would cause retries."""

    def bounded(self, timeout, attempts):
        return super().bounded(max(timeout, PATIENCE), attempts)


@pytest.fixture
def kube():
    with KubeServer() as server:
        yield server


@pytest.fixture
async def connect(kube):
    """Return a factory of clients of ``kube``, by default an administrator's, without waits."""
    made, waits = [], []

    async def pause(seconds):
        waits.append(seconds)

    def api(settings=SETTINGS, token=rbac.ADMIN_TOKEN):
        configuration = kube.configuration(token)
        made.append(PatientApi(settings, configuration, pause=pause, chance=lambda: 1.0))
        return made[-1]

    api.waits = waits
    yield api
    for one in made:
        await one.close()
