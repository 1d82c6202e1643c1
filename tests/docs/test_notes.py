"""The commands that Helm prints after an installation start a release and reach it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import cluster, pages
from tests.docs.pages import Command
from tests.docs.shell import programs
from tests.docs.typing_in import Typist, typist

pytestmark = [pytest.mark.timeout(1800), cluster.needs_tools]

VALUES = "--values deploy/presets/pocket-r1-cpu.yaml"
AUTOSCALER = (
    " --set autoscaler.enabled=true --set autoscaler.maxGroups=2"
    " --set autoscaler.prometheusUrl=http://prometheus.monitoring.svc:9090"
    " --set security.openMetrics=true"
)
RELEASES = {
    "pocket": VALUES,
    "tls": f"{VALUES} --set security.tls.mode=secret{AUTOSCALER}",
    "insecure": f"{VALUES} --set security.insecure=true",
}
KUBERNETES = pages.ROOT / "deploy" / "docs" / "kubernetes.md"


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Typist]:
    with cluster.empty_cluster() as server, typist(server, tmp_path) as typed:
        yield typed


def type_in(typed: Typist, line: str) -> str:
    typed.type(Command("NOTES.txt", 1, line, typed=True))
    return typed.done[-1][2]


def commands(notes: str) -> list[str]:
    """Return the indented lines that begin with a program."""
    lines = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    known = {*pages.PROGRAMS, "curl"}
    return [line for line in lines if (found := programs(line)) and found[0] in known]


def certificate(typed: Typist) -> None:
    """Create the Secret as in kubernetes.md, for the release of these tests."""
    for command in pages.commands(KUBERNETES):
        if command.typed and ("openssl.sh" in command.text or "tls.crt" in command.text):
            type_in(typed, command.text.replace("pocket-", "tls-"))


@pytest.mark.parametrize("release", RELEASES)
def test_the_notes_bring_a_release_up(typed: Typist, release: str) -> None:
    type_in(typed, "kubectl create namespace serving")
    install = f"helm install {release} helm/moe-serving --namespace serving {RELEASES[release]}"
    notes = type_in(typed, f"{install} --dry-run=client --hide-secret").split("NOTES:")[1]
    lines = commands(notes)
    secrets = [line for line in lines if " create secret " in line or " keys new " in line]
    assert bool(secrets) is (release != "insecure")
    for line in secrets:
        type_in(typed, line)
    if release == "tls":
        type_in(typed, "kubectl config set-context --current --namespace serving")
        certificate(typed)
    type_in(typed, install)
    for line in lines:
        if line not in secrets:
            output = type_in(typed, line)
            if line.startswith("curl"):
                assert json.loads(output[output.index("{") :])["data"][0]["id"] == "pocket-r1"
            if "status --kube" in line:
                assert "in namespace serving" in output
    assert any("port-forward" in line for line in lines)


def test_the_notes_name_every_secret_that_a_pod_mounts(typed: Typist) -> None:
    type_in(typed, "kubectl create namespace serving")
    values = RELEASES["tls"]
    rendered = type_in(
        typed,
        f"helm install tls helm/moe-serving --namespace serving {values} --dry-run=client"
        " | grep -E '^ *secretName: ' | sed 's/.*secretName: //' | sort",
    )
    notes = type_in(
        typed, f"helm install tls helm/moe-serving --namespace serving {values} --dry-run=client"
    ).split("NOTES:")[1]
    mounted = {line.strip('" ') for line in rendered.splitlines()}
    assert len(mounted) > 4
    for name in mounted:
        assert f"\n{name}, key" in notes, name
