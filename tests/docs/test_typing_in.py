"""Wrong commands fail: typical mistakes in pages, each run in a cluster."""

from collections.abc import Iterator

import pytest

from tests.docs import cluster
from tests.docs.pages import Command
from tests.docs.rules import How
from tests.docs.typing_in import Failed, Typist, typist

pytestmark = [pytest.mark.timeout(1800), cluster.needs_tools]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    folder = tmp_path_factory.mktemp("typed")
    with cluster.empty_cluster() as server, typist(server, folder) as typed:
        for line in (
            "kubectl create namespace serving",
            "kubectl config set-context --current --namespace serving",
            "helm install pocket helm/moe-serving --values deploy/presets/pocket-r1-cpu.yaml",
        ):
            typed.type(Command("made.md", 1, line, typed=True))
        yield typed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("kubectx serving", "no rule for kubectx", id="unknown-program"),
        pytest.param("kubectl get pods | kubectx x", "no rule for kubectx", id="in-a-pipe"),
        pytest.param('echo "$(kubens x)"', "no rule for kubens", id="in-a-substitution"),
        pytest.param("kubectl get 'pods", "unexpected EOF", id="open-quote"),
        pytest.param(
            "kubectl get rayservices,pods --watch", "you may only specify a single", id="two-kinds"
        ),
        pytest.param("kubectl get pod missing", "not found", id="no-such-object"),
        pytest.param("kubectl get pods | grep nothing", "exited with 1", id="exit-code"),
        pytest.param("helm test other", "release: not found", id="no-such-release"),
        pytest.param(
            "helm repo ad kuberay https://x", "is not a command of helm", id="no-such-subcommand"
        ),
        pytest.param("helm repo add a https://x --forse", "unknown flag", id="flags-of-not-run"),
        pytest.param("moe-serving up --grops 2", "unknown flag", id="our-flags"),
        pytest.param(
            "kubectl exec deployment/other -- moe-serving switch --to x", "not found", id="exec"
        ),
        pytest.param(
            "kubectl exec deployment/pocket-moe-serving-router -- moe-serving switch --too x",
            "unknown flag",
            id="exec-flags",
        ),
        pytest.param(
            "kubectl port-forward service/pocket-moe-serving-rest 8000:8001",
            "does not have a service port 8001",
            id="forward-port",
        ),
        # The pods would wait for the Secret, which does not exist.
        pytest.param(
            "kubectl port-forward service/pocket-moe-serving-rest 8000:8000",
            "secrets moe-serving-keys not found",
            id="forward-without-secrets",
        ),
        pytest.param(
            "kubectl apply -f - <<EOF\n"
            "{apiVersion: v1, kind: Secret, metadata: {name: a}, dat: {}}\nEOF",
            "unknown field",
            id="unknown-field",
        ),
        pytest.param(
            "helm upgrade pocket helm/moe-serving --reuse-values --set autoscaler.enabled=true",
            "autoscaler.prometheusUrl",
            id="refused-values",
        ),
    ],
)
def test_mistakes(typed: Typist, line: str, words: str) -> None:
    with pytest.raises(Failed, match=r"made\.md:3") as caught:
        typed.type(Command("made.md", 3, line, typed=True))
    assert words in str(caught.value)


def test_a_command_in_the_text_is_asked_for_its_flags_alone(typed: Typist) -> None:
    typed.type(Command("made.md", 3, "kubectl drain NODE --ignore-daemonsets", typed=False))
    assert typed.done[-1][1] is How.FLAGS
    with pytest.raises(Failed, match="unknown flag"):
        typed.type(Command("made.md", 3, "kubectl drain NODE --ignore-daemons", typed=False))


def test_variables_stay_from_command_to_command(typed: Typist) -> None:
    for line in ("PODS=$(kubectl get pods --output name)", 'printf "%s" "$PODS"'):
        typed.type(Command("made.md", 3, line, typed=True))
    assert typed.done[-1][2].count("pod/") == 4
