"""Parsing of pages and command lines."""

from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.shell import Shell, is_shell, programs, simple_commands

PAGE = """\
Try `kubectl get pods
-A` or `helm`.

```yaml
# my.yaml
a: 1
```

```console
$ kubectl get pods    # comment
NAME  READY
$ helm install r1 chart \\
    --set a=1
$ kubectl apply -f - <<EOF
kind: Secret
EOF
$ kubectl patch x --patch '[
    {"op": "replace"}]'
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(PAGE, "utf-8")
    return path


def test_commands_of_a_page(page: Path) -> None:
    found = [(item.line, item.text, item.typed) for item in pages.commands(page)]
    assert found == [
        (1, "kubectl get pods -A", False),
        (10, "kubectl get pods    # comment", True),
        (12, "helm install r1 chart \\\n    --set a=1", True),
        (14, "kubectl apply -f - <<EOF\nkind: Secret\nEOF", True),
        (17, 'kubectl patch x --patch \'[\n    {"op": "replace"}]\'', True),
    ]
    assert pages.files(page) == {"my.yaml": "# my.yaml\na: 1\n"}


def test_a_command_in_a_block_of_another_kind_is_stray(page: Path) -> None:
    assert pages.stray(page) == []
    page.write_text("```\nkubectl get pods\n```\n", "utf-8")
    assert pages.stray(page) == ["kubectl get pods"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("kubectl get pods | head -1 && helm list", ["kubectl", "head", "helm"]),
        ('A=1 kubectl create x --from-literal=t="$(openssl rand -hex 3)"', ["kubectl", "openssl"]),
        ("KEY=$(moe-serving keys new --tenant a)", ["moe-serving"]),
        ("kubectl get pods 2> log   # a | comment", ["kubectl"]),
        ("kubectl apply -f - <<EOF\nhelm: it's\nEOF", ["kubectl"]),
        ("kubectl port-forward service/a 1:2 &", ["kubectl"]),
        ("env A=b moe-serving status", ["moe-serving"]),
    ],
)
def test_programs_of_a_command(command: str, expected: list[str]) -> None:
    assert programs(command) == expected


def test_words_of_a_command() -> None:
    assert simple_commands("A=b kubectl get \\\n  pods >out | wc -l") == [
        ["kubectl", "get", "pods"],
        ["wc", "-l"],
    ]


def test_what_bash_does_not_take() -> None:
    assert is_shell("kubectl get 'pods") is not None
    assert is_shell("kubectl get pods") is None


def test_a_shell_keeps_variables_and_says_how_a_command_ended(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    try:
        assert shell.run("A=3; echo one; echo two >&2").output == "one\ntwo"
        assert shell.run('echo "$A"; false').code == 1
        assert shell.run('printf "$A"').output == "3"
        watched = shell.first_output("echo up; sleep 600")
        assert (watched.code, watched.output) == (0, "up")
        assert shell.first_output("echo no; exit 3").code == 1
        with pytest.raises(TimeoutError, match="sleep 600"):
            shell.run("sleep 600", 0.5)
    finally:
        shell.close()
