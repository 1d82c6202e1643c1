"""How commands end: exit codes, error lines, hints."""

import io
import re
import tomllib
from pathlib import Path

import pytest
import typer

from serving import errors
from serving.cli.errors import _PACKAGES, guarded, hint_of

ROOT = Path(__file__).resolve().parents[3]


def run(error: BaseException | None, *, verbose: bool = False, result: object = None):
    def command() -> object:
        if error is not None:
            raise error
        return result

    out = io.StringIO()
    return guarded(command, verbose=verbose, stderr=out), out.getvalue()


@pytest.mark.parametrize(
    ("result", "code"),
    [(None, 0), (0, 0), (3, 3), ("text", 0), (True, 0)],
    ids=["nothing", "zero", "code", "text", "bool"],
)
def test_what_a_command_returns(result: object, code: int):
    assert run(None, result=result) == (code, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(errors.NotReady("no group"), 1, id="ours"),
        pytest.param(ValueError("odd"), 1, id="any-other"),
        pytest.param(typer.BadParameter("bad"), 2, id="usage"),
        pytest.param(typer.Exit(7), 7, id="exit"),
        pytest.param(typer.Abort(), 130, id="abort"),
        pytest.param(KeyboardInterrupt(), 130, id="ctrl-c"),
        pytest.param(BrokenPipeError(), 1, id="pipe"),
    ],
)
def test_how_a_command_fails(error: BaseException, code: int):
    assert run(error)[0] == code


def test_our_errors_are_one_line_and_a_hint():
    _, shown = run(errors.NotReady("no group is ready"))
    assert shown.splitlines() == [
        "error: no group is ready",
        f"hint:  {hint_of(errors.NotReady(''))}",
    ]


def test_other_errors_name_their_type_in_one_line():
    _, shown = run(ValueError("one\ntwo"))
    assert shown.splitlines() == [
        "error: ValueError: one two",
        "hint:  run with --verbose for the traceback",
    ]


@pytest.mark.parametrize("error", [errors.NotReady("x"), ValueError("x")], ids=["ours", "other"])
def test_verbose_shows_the_traceback(error: Exception):
    assert "Traceback" in run(error, verbose=True)[1]
    assert "Traceback" not in run(error)[1]


def test_silent_ends_print_nothing():
    for error in (KeyboardInterrupt(), typer.Exit(1), BrokenPipeError()):
        assert run(error)[1] == ""


def test_a_subclass_takes_the_hint_of_its_parent():
    class NoRoom(errors.PlacementError):
        pass

    assert hint_of(NoRoom("x")) == hint_of(errors.PlacementError("x"))
    assert hint_of(errors.ServingError("x")) is None


def test_an_error_that_says_what_to_do_gets_no_hint() -> None:
    class Complete(errors.EngineError):
        hint = ""

    assert hint_of(Complete("peer 1 never came")) is None
    assert hint_of(errors.EngineError("x")) is not None


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("kubernetes.aio", "moe-serving[autoscaler]"),
        ("numpy", "moe-serving[load]"),
        ("vllm.config", "moe-serving[gpu]"),
    ],
)
def test_a_package_of_an_extra_that_is_not_installed_is_named(module: str, remedy: str) -> None:
    code, shown = run(ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert code == 1
    error, hint = shown.splitlines()
    assert f"needs {module.partition('.')[0]}, which is not installed" in error
    assert remedy in hint


def test_every_package_with_a_remedy_is_in_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    for package, remedy in _PACKAGES.items():
        (named,) = re.findall(r"moe-serving\[(\S+)\]", remedy)
        for extra in named.split(","):
            names = {re.split(r"[\[<>=]", line)[0] for line in extras[extra]}
            assert package in names, (package, extra)
