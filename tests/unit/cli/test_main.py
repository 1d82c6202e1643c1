"""The command line as a whole: help, exit codes, and what is imported when."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from serving.cli.main import COMMANDS, Command, build_app, main, reflowed, take_verbose


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in shown
        assert command.summary in shown


def test_no_arguments_show_the_overview(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "Usage: moe-serving" in capsys.readouterr().out


def test_overview_imports_neither_ray_nor_vllm():
    code = (
        "import sys; from serving.cli.main import main; main(['--help']); "
        "sys.exit(bool({'ray', 'vllm', 'torch', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_there_and_explains_itself(command):
    # Parsed, not imported: some commands need Ray.
    spec = find_spec(command.module)
    assert spec is not None
    assert spec.origin is not None
    functions = {
        node.name: ast.get_docstring(node)
        for node in ast.parse(Path(spec.origin).read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions[command.function]


@pytest.mark.parametrize("name", ["chat", "doctor", "router", "verify"])
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name, "--help"]) == 0
    assert "--set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(["bogus"], "No such command 'bogus'", id="command"),
        pytest.param(["chat", "--bogus"], "unknown flag --bogus", id="option"),
        pytest.param(
            ["verify", "--prompts", "many"], "--prompts many: must be a whole number", id="type"
        ),
        pytest.param(["verify", "--prompts", "0"], "--prompts 0: must be at least 1", id="range"),
    ],
)
def test_a_wrong_line_is_one_error_line_and_code_2(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(line) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["status", "--url", "http://127.0.0.1:1"], "cannot reach the router at http://127.0.0.1:1/fleet"),
        (["chat", "x", "--server", "http://127.0.0.1:1"], "cannot connect to http://127.0.0.1:1"),
        (["verify", "--ranks", "", "--against", "/none", "--server", "http://127.0.0.1:1"],
         "cannot read /none"),
        (["cordon", "g0", "--router", "nowhere"], "--grpc-address: 'nowhere' is neither"),
        (["uncordon", "g0", "--router", "nowhere"], "--grpc-address: 'nowhere' is neither"),
        (["drain", "g0", "--timeout", "9", "--router", "nowhere"], "--grpc-address: 'nowhere'"),
        (["switch", "--to", "a", "--timeout", "9", "--router", "nowhere"], "--grpc-address: "),
        (["load", "run", "--rate", "1", "--url", "http://127.0.0.1:1"],
         "the server is not available: cannot connect to "),
        (["load", "run", "--rate", "1", "--grpc", "127.0.0.1:1"], "the server is not available: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_earlier_names_of_flags_are_taken_and_not_shown(
    line: list[str], error: str, capsys: pytest.CaptureFixture[str]
):
    assert main(line) == 1
    assert capsys.readouterr().err.startswith(f"error: {error}")
    words = line[:2] if line[0] == "load" else line[:1]
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    earlier = [word for word in line if word in {"--url", "--server", "--router", "--timeout"}]
    assert earlier or "--grpc" in line
    assert not [name for name in earlier if f" {name} " in shown]


def test_paragraphs_of_help_are_single_lines_and_brackets_no_markup():
    assert reflowed("One\ntwo [x].\n\n  an example\n  of two lines") == (
        "One two \\[x].\n\n  an example\n  of two lines"
    )


def test_wrong_settings_are_one_error_line_and_code_1(capsys: pytest.CaptureFixture[str]):
    assert main(["router", "--set", "group.count=none", "--port", "99999"]) == 1
    shown = capsys.readouterr().err
    assert "group.count" in shown
    assert "router.rest_port" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("line", "rest", "verbose"),
    [
        pytest.param(["up"], ["up"], False, id="absent"),
        pytest.param(["--verbose", "up"], ["up"], True, id="before"),
        pytest.param(["up", "--verbose"], ["up"], True, id="after"),
        pytest.param(["chat", "--", "--verbose"], ["chat", "--", "--verbose"], False, id="text"),
    ],
)
def test_verbose_is_taken_anywhere(line: list[str], rest: list[str], verbose: bool):
    assert take_verbose(line) == (rest, verbose)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("moe-serving 0.")


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if not one.own_options], ids=lambda one: one.name
)
def test_no_flag_is_abbreviated(command: Command, capsys: pytest.CaptureFixture[str]):
    group = typer.main.get_command(build_app(command.name))
    flags = [
        name
        for param in vars(group)["commands"][command.name].params
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("--")
    ]
    for flag in (*flags, "--help"):
        short = flag[:-1]
        assert short not in flags
        assert main([command.name, short]) == 2
        error = capsys.readouterr().err.splitlines()[0]
        assert error.startswith(f"error: unknown flag {short}; did you mean --")
