"""The commands of the runbooks, of pages next to kubernetes.md, and of all others.

The commands of the runbooks run in a cluster with the release that they are written for, those of
the pages in ``TYPED`` in an empty cluster; of all others, only the flags are checked.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import cluster, pages
from tests.docs.pages import ROOT, Command
from tests.docs.typing_in import Typist, typist

pytestmark = [pytest.mark.timeout(1800), cluster.needs_tools]

DOCS = ROOT / "deploy" / "docs"
TLS = ROOT / "deploy" / "examples" / "tls" / "README.md"
KUBERNETES = DOCS / "kubernetes.md"
RUNBOOKS = sorted((DOCS / "runbooks").glob("*.md"))
TYPED = [*RUNBOOKS, DOCS / "kubernetes-gpus.md", TLS, DOCS / "security.md", DOCS / "autoscaling.md"]
OTHERS = [page for page in pages.pages() if page not in TYPED and page != KUBERNETES]
RELEASE = """\
kubectl create namespace serving
kubectl config set-context --current --namespace serving
ADMIN_KEY=$(moe-serving keys new --tenant ops --role admin --file keys.yaml)
kubectl create secret generic moe-serving-keys --from-file=keys.yaml
kubectl create secret generic moe-serving-join --from-literal=token="$(openssl rand -hex 32)"
kubectl create secret generic moe-serving-autoscaler --from-literal=key="$ADMIN_KEY"
kubectl create secret generic moe-serving-ray --from-literal=auth_token="$(openssl rand -hex 32)"
helm install pocket helm/moe-serving --values deploy/presets/pocket-r1-cpu.yaml \
    --set autoscaler.enabled=true --set autoscaler.prometheusUrl=http://prometheus.monitoring:9090 \
    --set autoscaler.maxGroups=2 --set security.openMetrics=true
kubectl wait rayservice/pocket-moe-serving --for=condition=Ready --timeout=60s
rm keys.yaml"""
"""The release of kubernetes.md, with the autoscaler; one command per line."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=TYPED, ids=name_of)
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Typist]]:
    page: Path = request.param
    with cluster.empty_cluster() as server, typist(server, tmp_path) as typed:
        typed.type(Command("before", 1, "kubectl create namespace prod", typed=True))
        if any(item.typed for item in pages.commands(page)) and page in RUNBOOKS:
            for number, line in enumerate(RELEASE.splitlines(), 1):
                typed.type(Command("RELEASE", number, line, typed=True))
        yield page, typed


def test_every_command_does_its_work(prepared: tuple[Path, Typist]) -> None:
    page, typed = prepared
    for command in pages.commands(page):
        typed.type(command)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    folder = tmp_path_factory.mktemp("others")
    with cluster.empty_cluster() as server, typist(server, folder, runs=False) as reader:
        yield reader


@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_every_command_of_other_pages_has_flags_that_exist(page: Path, reader: Typist) -> None:
    for command in pages.commands(page):
        reader.type(command)


@pytest.mark.parametrize("page", pages.pages(), ids=name_of)
def test_commands_stand_where_they_are_seen(page: Path) -> None:
    assert pages.stray(page) == []
