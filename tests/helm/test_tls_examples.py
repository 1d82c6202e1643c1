"""The certificate examples: run, and used for the names that the chart's pods connect to."""

import base64
import re
import shlex
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import ROOT, find, render, settings_of

EXAMPLES = ROOT / "deploy" / "examples" / "tls"
KUBECTL = ROOT / ".tools" / "kubectl" / "kubectl"
PARTS = {"tls.crt", "tls.key", "ca.crt"}


def dialled() -> set[str]:
    """Return the names under which the pods of release r1 and its clients reach the routers."""
    values: dict[str, Any] = {
        "fullnameOverride": "r1-moe-serving",
        "security": {
            "joinTls": {
                "enabled": True,
                "existingSecret": "moe-serving-tls",
                "rankSecret": "moe-serving-rank-tls",
            }
        },
    }
    objects = render("everything", **values)
    config = next(
        item["data"]
        for item in objects
        if item["kind"] == "ConfigMap" and "autoscaler.yaml" in item["data"]
    )
    scaler = yaml.safe_load(config["autoscaler.yaml"])["autoscaler"]
    routers = yaml.safe_load(config["settings.yaml"])["link"]["routers"]
    found = [*scaler["routers"], *scaler["drain_addresses"], *routers]
    found += [script for pod in objects if pod["kind"] == "Pod" for script in _scripts(pod)]
    names = set(re.findall(r"r1-moe-serving-[a-z]+\.prod\.svc(?:\.cluster\.local)?", str(found)))
    services = {
        f"{item['metadata']['name']}.prod.svc"
        for item in objects
        if item["kind"] == "Service" and item["metadata"]["labels"].get("moe-serving/service")
    }
    assert {name.partition(".")[0] for name in names} <= {s.partition(".")[0] for s in services}
    return names | services


def _scripts(pod: dict[str, Any]) -> list[str]:
    return [arg for c in pod["spec"]["containers"] for arg in c.get("args", ())]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands of the page have been run."""
    folder = tmp_path_factory.mktemp("tls")
    (script, *_) = [line for line in commands() if line.split()[0].endswith("openssl.sh")]
    program, *arguments = shlex.split(script)
    subprocess.run([ROOT / program, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


def commands() -> list[str]:
    """Return the commands of the page, with continuation lines joined."""
    text = (EXAMPLES / "README.md").read_text("utf-8").replace("\\\n", " ")
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)


def handshake(folder: Path, name: str, *, client: bool) -> ssl.SSLObject:
    """Perform a TLS handshake in memory and return the server's side.

    Raises:
        ssl.SSLError: One side does not trust the other.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    server.load_verify_locations(folder / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED if client else ssl.CERT_NONE
    caller = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    caller.verify_flags |= ssl.VERIFY_X509_STRICT
    if client:
        caller.load_cert_chain(folder / "rank.crt", folder / "rank.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        caller.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(10):
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[1].version() is not None
    return ends[1]


def test_a_release_dials_more_than_one_name() -> None:
    kinds = {name.partition(".")[0].rpartition("-")[2] for name in dialled()}
    assert {"rest", "grpc", "routers", "join"} <= kinds


def test_every_name_that_is_dialled_is_trusted(made: Path) -> None:
    for name in dialled():
        handshake(made, name, client=False)


def test_another_name_is_not(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, "r2-moe-serving-rest.prod.svc", client=False)


def test_ranks_are_asked_for_their_certificate(made: Path) -> None:
    server = handshake(made, "r1-moe-serving-join.prod.svc.cluster.local", client=True)
    shown = server.getpeercert()
    assert shown is not None
    assert "r1-moe-serving ranks" in str(shown["subject"])


def test_keys_are_for_their_owner_alone(made: Path) -> None:
    for file in made.glob("*.key"):
        assert file.stat().st_mode & 0o077 == 0


SECRETS = [line for line in commands() if "create secret" in line]


def test_the_page_makes_the_secrets_that_its_values_name() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    security = yaml.safe_load(block)["security"]
    named = {
        security["tls"]["existingSecret"],
        security["joinTls"]["existingSecret"],
        security["joinTls"]["rankSecret"],
    }
    assert {line.split("generic ")[1].split()[0] for line in SECRETS} == named
    objects = render(security=security)
    assert settings_of(objects)["security"]["join_tls_client_ca_file"].endswith("ca.crt")


@pytest.mark.parametrize("line", SECRETS, ids=lambda line: line.split("generic ")[1].split()[0])
def test_the_secret_has_the_certificate_the_key_and_the_authority(made: Path, line: str) -> None:
    if not KUBECTL.is_file():
        pytest.skip("no kubectl in .tools: .ci/tools fetches it and says if it cannot")
    program, *arguments = shlex.split(line)
    assert program == "kubectl"
    done = subprocess.run(
        [KUBECTL, *arguments, "--dry-run=client", "--output=yaml"],
        cwd=made,
        check=True,
        capture_output=True,
        text=True,
        env={"HOME": str(made), "PATH": "/usr/bin:/bin"},
    )
    secret = yaml.safe_load(done.stdout)
    assert secret["type"] == "kubernetes.io/tls"
    assert set(secret["data"]) == PARTS
    authority = base64.b64decode(secret["data"]["ca.crt"])
    assert authority == (made / "ca.crt").read_bytes()


def certificates() -> dict[str, dict[str, Any]]:
    objects = yaml.safe_load_all((EXAMPLES / "cert-manager.yaml").read_text("utf-8"))
    return {
        item["spec"]["secretName"]: item["spec"]
        for item in objects
        if item["kind"] == "Certificate"
    }


def test_cert_managers_certificate_has_every_name() -> None:
    assert dialled() <= set(certificates()["moe-serving-tls"]["dnsNames"])


def test_cert_manager_makes_the_same_secrets_with_an_authority() -> None:
    objects = list(yaml.safe_load_all((EXAMPLES / "cert-manager.yaml").read_text("utf-8")))
    issuers = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Issuer"}
    made = certificates()
    assert {line.split("generic ")[1].split()[0] for line in SECRETS} <= set(made)
    for name in ("moe-serving-tls", "moe-serving-rank-tls"):
        issuer = issuers[made[name]["issuerRef"]["name"]]
        # Only an issuer with a known CA writes ca.crt.
        assert made[issuer["ca"]["secretName"]]["isCA"] is True
    assert "server auth" in made["moe-serving-tls"]["usages"]
    assert "client auth" in made["moe-serving-rank-tls"]["usages"]


def test_one_release_and_namespace_throughout() -> None:
    objects = list(yaml.safe_load_all((EXAMPLES / "cert-manager.yaml").read_text("utf-8")))
    assert {item["metadata"]["namespace"] for item in objects} == {"prod"}
    assert find(render(fullnameOverride="r1-moe-serving"), "RayService")["metadata"]["name"] == (
        "r1-moe-serving"
    )
