"""What flags accept, and how what they do not accept is said."""

import argparse
import ast
import importlib
import math
from pathlib import Path

import pytest

from loadtest.arguments import RUN_PANELS, SEARCH, Flag
from loadtest.command import main
from serving.flag_parser import FlagParser
from serving.flag_values import (
    AMOUNT,
    BadValue,
    Choice,
    HostPort,
    Number,
    OutputFolder,
    Pair,
    ReadableFile,
    ReadableFolder,
    Several,
    Text,
    WebAddress,
    Whole,
    nearest,
    refusal,
    unknown,
)

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [flag for _, flags in (*RUN_PANELS, SEARCH) for flag in flags]
VALUED = [flag for flag in FLAGS if flag.reads is not None]
ONE_LOAD = "a run needs exactly one of --rate, --ramp, --concurrency, --trace"
A_RUN = "a directory that 'load run' or 'load search' wrote is accepted"
NOT_NUMBERS = ("", " ", "x", "1x", "nan", "inf", "-inf", "-1", "1e999", "0x10", "١", "1_0", "--")
NOT_ADDRESSES = (
    "", "x", "localhost:8000", "ftp://h", "http://", "http://h:0", "http://h:70000", "http://h:x",
    "http://h h", "http://h:", "file:///etc/passwd", "http://[::1", "http://h/?a=1",
)  # fmt: skip
NOT_HOST_PORTS = ("", "h", ":1", "h:", "h:0", "h:65536", "h:x", "http://h:1", "h h:1", "h:-1")


def bad_values(reads: object, folder: Path) -> list[str]:
    """Return values that a reader must refuse, by its kind."""
    file = folder / "file"
    file.write_text("")
    no_path = ["", "a\0b", "n" * 5000]
    fixed: dict[type, list[str]] = {
        Text: ["", " ", "a\nb", "\x1b[31m"],
        WebAddress: list(NOT_ADDRESSES),
        HostPort: list(NOT_HOST_PORTS),
        ReadableFile: [*no_path, str(folder), str(folder / "missing")],
        OutputFolder: [*no_path, str(file), str(file / "below")],
        ReadableFolder: [*no_path, str(file), str(folder), str(folder / "missing")],
    }
    if isinstance(reads, Whole):
        return [*NOT_NUMBERS[:-1], "1.5", str(reads.at_least - 1), str(reads.at_most + 1)]
    if isinstance(reads, Number):
        over = [] if math.isinf(reads.at_most) else [f"{reads.at_most * 2:f}"]
        return [*NOT_NUMBERS, *over, *(["0"] if reads.above == 0 else [])]
    if isinstance(reads, Several):
        return ["1,", ",", "1,,2", *bad_values(reads.part, folder)]
    if isinstance(reads, Pair):
        reversed_pair = f"9{reads.sign}1" if reads.sign == "/" or reads.single else "0:0"
        return [*NOT_NUMBERS, "1:2:3", ":", "1:", ":1", "1/", reversed_pair]
    if isinstance(reads, Choice):
        return ["", "x", reads.words[0].upper(), reads.words[0][:-1]]
    return fixed[type(reads)]


@pytest.mark.parametrize("flag", VALUED, ids=lambda flag: flag.name)
def test_bad_values_are_refused_in_words(flag: Flag, tmp_path: Path):
    assert flag.reads is not None
    for text in bad_values(flag.reads, tmp_path):
        with pytest.raises(BadValue) as refused:
            flag.reads(text)
        words = refusal(flag.name, text, refused.value)
        assert words.startswith(f"{flag.name} ")
        assert words.isprintable()
        assert "object at" not in words
        assert "_" not in words.replace(text, "").replace(str(tmp_path), "")


@pytest.mark.parametrize("flag", VALUED, ids=lambda flag: flag.name)
def test_a_default_is_accepted(flag: Flag):
    assert flag.reads is not None
    if flag.default is not None:
        flag.reads(flag.default)


@pytest.mark.parametrize("flag", VALUED, ids=lambda flag: flag.name)
def test_the_command_line_names_flag_and_value(
    flag: Flag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = "search" if flag in SEARCH[1] else "run"
    text = bad_values(flag.reads, tmp_path)[-1]
    assert main([command, flag.name, text], prog="load") == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {flag.name} ")
    assert "Value error" not in error
    assert hint == f"hint:  load {command} --help lists the flags"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_no_flag_is_abbreviated(flag: Flag, capsys: pytest.CaptureFixture[str]):
    command = "search" if flag in SEARCH[1] else "run"
    short = flag.name[:-1]
    assert main([command, short, "1"], prog="load") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {short} is not a flag; did you mean {flag.name}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["run", "--rate", "1", "--output", "5"],
         "--output is not a flag; did you mean --output-tokens?"),
        (["run", "--rate", "0"],
         "--rate 0: a rate is a number of requests/s above 0, at most 1000000"),
        (["run", "--rate"], "--rate needs a value"),
        (["run"], f"no load is given: {ONE_LOAD}"),
        (["run", "--rate", "1", "--concurrency", "1"],
         f"--rate and --concurrency exclude each other: {ONE_LOAD}"),
        (["run", "--rate", "1", "--url", "http://h", "--grpc", "h:1"],
         "--url and --grpc exclude each other: one server is loaded"),
        (["run", "--concurrency", "1", "--shard", "1/2"],
         "--shard is for rates and traces; give each worker its own --concurrency"),
        (["search"], "a search needs a limit: --slo-ttft-ms, --slo-itl-ms or --slo-latency-ms"),
        (["search", "--slo-ttft-ms", "9", "--start", "5", "--most", "4"],
         "--start 5: it is above --most 4"),
        (["report"], "FOLDER... is missing"),
        (["compare", "a"], f"A a: there is no such directory; {A_RUN}"),
        (["nothing"], "No such command 'nothing'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_lines_that_are_wrong(line, error, capsys):
    assert main(line, prog="load") == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


def test_a_key_is_in_no_error():
    assert "secret" not in refusal("--api-key", "secret\n", Text("a key"))


def test_a_folder_must_hold_what_is_read(tmp_path: Path):
    reads = ReadableFolder("run.json")
    with pytest.raises(BadValue, match=r"it has no run\.json"):
        reads(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    assert reads(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--output", "--output-tokens"),
        ("--slo-ttft", "--slo-ttft-ms"),
        ("--concurency", "--concurrency"),
        ("--output-tokens=5", "--output-tokens"),
        ("--", None),
        ("--zzz", None),
    ],
)
def test_the_nearest_flag(word, meant):
    assert nearest(word, [flag.name for flag in FLAGS]) == meant


def test_an_unknown_flag_without_a_near_one():
    assert unknown("--zzz", ["--rate"]) == "--zzz is not a flag"


@pytest.fixture
def parser() -> FlagParser:
    parser = FlagParser(prog="tool")
    parser.add_argument("--seconds", type=AMOUNT)
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    below = parser.add_subparsers().add_parser("below")
    below.add_argument("--second-thing", type=Several(Whole("a size")))
    return parser


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("--sec 1", "--sec is not a flag; did you mean --seconds?"),
        ("--seconds 0", "--seconds 0: the value is a number above 0, at most 1000000000"),
        ("--seconds -inf", "--seconds -inf: the value is a number above 0, at most 1000000000"),
        ("--seconds", "--seconds needs a value: the value is a number above 0, at most 1000000000"),
        ("--seconds --quick",
         "--seconds needs a value: the value is a number above 0, at most 1000000000"),
        ("--kind c", "--kind c: one of a, b is accepted"),
        ("--count 1.5", f"--count 1.5: the value is a whole number from -{10**18} to {10**18}"),
        ("--quick=1", "--quick: ignored explicit argument '1'"),
        ("below --second-t 1", "--second-t is not a flag; did you mean --second-thing?"),
        ("below --second-thing 1,x",
         "--second-thing 1,x: a size is a whole number from 1 to 1000000000"),
        ("below more", "more is not accepted"),
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
    assert not wrong, f"use serving.flag_parser.FlagParser: {wrong}"


def test_argparse_would_have_abbreviated():
    """What the parser is there for."""
    plain = vars(argparse)["ArgumentParser"]()
    plain.add_argument("--output-tokens")
    assert plain.parse_args(["--output", "5"]).output_tokens == "5"


class Stopped(Exception):
    """Carries a command's parser out of it."""


@pytest.mark.parametrize(
    "module",
    [
        "loadtest.affinity",
        "loadtest.autoscale",
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
        assert f"{flag[:-1]} is not a flag; did you mean --" in capsys.readouterr().err
