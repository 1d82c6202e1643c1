"""The commands of deploy/docs/kubernetes.md, run as written, from an empty cluster."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.docs import cluster, pages
from tests.docs.rules import RULES, How, rule_of
from tests.docs.typing_in import Typist, typist

PAGE = pages.ROOT / "deploy" / "docs" / "kubernetes.md"

pytestmark = [pytest.mark.timeout(1800), cluster.needs_tools]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    folder = tmp_path_factory.mktemp("kubernetes")
    with cluster.empty_cluster() as server, typist(server, folder) as typed:
        for name, text in pages.files(PAGE).items():
            (folder / "place" / name).write_text(text, "utf-8")
        for command in pages.commands(PAGE):
            typed.type(command)
        yield typed


def output(typed: Typist, begin: str) -> list[str]:
    """Return the output of the commands that contain ``begin``, in order."""
    found = [output for command, _, output in typed.done if begin in command.text]
    assert found, begin
    return found


def test_every_command_of_the_page_does_its_work(typed: Typist) -> None:
    assert len(typed.done) == len(pages.commands(PAGE)) > 50
    tried = Counter(how for command, how, _ in typed.done if command.typed)
    assert tried[How.RUN] > 3 * (tried[How.PARSED] + tried[How.FLAGS])


def test_a_client_reaches_the_routers_with_its_key(typed: Typist) -> None:
    answers = output(typed, "curl ")
    assert len(answers) == 2  # without TLS and with it
    for answer in answers:
        assert [model["id"] for model in json.loads(answer)["data"]] == ["pocket-r1"]


def test_status_shows_the_pods_with_and_without_tls(typed: Typist) -> None:
    shown = output(typed, "moe-serving status --kube --rest-url")
    assert len(shown) == 2
    for text in shown:
        assert "2 Ray pods in namespace serving" in text
        assert text.count("-cpu-worker-") >= 2


def test_the_releases_tests_succeed(typed: Typist) -> None:
    for text in output(typed, "helm test"):
        assert "Phase:          Succeeded" in text


def test_the_release_follows_the_number_of_groups(typed: Typist) -> None:
    (text,) = output(typed, '"groups": 2')
    assert "4 pods" in text


def test_what_is_not_run_has_a_reason() -> None:
    assert all(rule.reason for rule in RULES)
    used = {rule_of(item.text) for page in pages.pages() for item in pages.commands(page)}
    assert used >= set(RULES), "unused rule"
