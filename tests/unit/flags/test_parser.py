"""The argument parser of the commands outside ``moe-serving``."""

import argparse
import ast
import importlib
from pathlib import Path

import pytest

from serving.flags.parser import FlagParser
from serving.flags.values import AMOUNT, CommaSeparated, WholeNumber
from tests.unit.flags.bad_values import bad_values

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def parser() -> FlagParser:
    parser = FlagParser(prog="tool")
    parser.add_argument("--seconds", type=AMOUNT)
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    below = parser.add_subparsers().add_parser("below")
    below.add_argument("--second-thing", type=CommaSeparated(WholeNumber("a size")))
    return parser


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("--sec 1", "unknown flag --sec; did you mean --seconds?"),
        ("--seconds 0", "--seconds 0: the value must be a number above 0, at most 1000000000"),
        ("--seconds -inf",
         "--seconds -inf: the value must be a number above 0, at most 1000000000"),
        ("--seconds",
         "--seconds needs a value: the value must be a number above 0, at most 1000000000"),
        ("--seconds --quick",
         "--seconds needs a value: the value must be a number above 0, at most 1000000000"),
        ("--kind c", "--kind c: must be one of a, b"),
        ("--count 1.5",
         f"--count 1.5: the value must be a whole number from -{10**18} to {10**18}"),
        ("--quick=1", "--quick: ignored explicit argument '1'"),
        ("below --second-t 1", "unknown flag --second-t; did you mean --second-thing?"),
        ("below --second-thing 1,x",
         "--second-thing 1,x: a size must be a whole number from 1 to 1000000000"),
        ("below more", "unexpected argument more"),
    ],
)  # fmt: skip
def test_parsers_of_other_commands(parser, line, error, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


def test_a_parser_that_abbreviates_is_not_made():
    with pytest.raises(TypeError):
        FlagParser(allow_abbrev=True)
    assert not any(one.allow_abbrev for one in FlagParser().parsers())


def test_no_parser_of_the_repository_abbreviates():
    """``FlagParser``, or argparse's own with ``allow_abbrev=False`` where it stands alone."""
    wrong = []
    for top in ("serving", "loadtest", "tests", "deploy", "helm"):
        for file in (ROOT / top).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(call, ast.Call):
                    continue
                name = call.func.attr if isinstance(call.func, ast.Attribute) else None
                name = call.func.id if isinstance(call.func, ast.Name) else name
                kept = {word.arg: word.value for word in call.keywords}.get("allow_abbrev")
                off = isinstance(kept, ast.Constant) and kept.value is False
                if name in {"ArgumentParser", "FlexibleArgumentParser"} and not off:
                    wrong.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert not wrong, f"use serving.flags.parser.FlagParser: {wrong}"


def test_argparse_would_have_abbreviated():
    """The purpose of the parser."""
    plain = vars(argparse)["ArgumentParser"]()
    plain.add_argument("--output-tokens")
    assert plain.parse_args(["--output", "5"]).output_tokens == "5"


class Stopped(Exception):
    """Raised with a command's parser to return it."""


@pytest.mark.parametrize(
    "module",
    [
        "loadtest.demos.affinity",
        "loadtest.demos.autoscale",
        "loadtest.bench.__main__",
        "loadtest.bench.agreement",
        "loadtest.bench.floods",
        "loadtest.bench.peers",
        "loadtest.simulation.__main__",
        "serving.engine.local_rank",
        "tests.bluegreen.run",
        "tests.faults.replay",
        "tests.overload.run",
    ],
)
def test_every_flag_of_the_other_commands(module, monkeypatch, tmp_path, capsys):
    def stop(parser, _arguments=None):
        raise Stopped(parser)

    with monkeypatch.context() as patched:
        patched.setattr(FlagParser, "parse_args", stop)
        with pytest.raises(Stopped) as stopped:
            importlib.import_module(module).main()
    parser = stopped.value.args[0]
    assert isinstance(parser, FlagParser)
    for action in parser._actions:
        flag = action.option_strings[-1]
        for text in [] if action.type in {None, Path} else bad_values(action.type, tmp_path):
            with pytest.raises(SystemExit) as ended:
                parser.parse_args([flag, text])
            assert ended.value.code == 2
            error, _hint = capsys.readouterr().err.splitlines()
            assert error.startswith(f"error: {flag} ")
            assert "invalid" not in error
        with pytest.raises(SystemExit):
            parser.parse_args([flag[:-1], "1"])
        assert f"unknown flag {flag[:-1]}; did you mean --" in capsys.readouterr().err
