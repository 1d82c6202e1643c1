"""Which values flags accept, and the messages for rejected values."""

import re
from pathlib import Path

import pytest

from loadtest.flags import RUN_PANELS, SEARCH, Flag
from serving.cli.main import main
from serving.flags.messages import BadValue, nearest, refusal, unknown
from serving.flags.paths import ReadableDirectory
from serving.flags.values import Text
from tests.unit.flags.bad_values import bad_values

FLAGS = [flag for _, flags in (*RUN_PANELS, SEARCH) for flag in flags]
VALUED = [flag for flag in FLAGS if flag.reads is not None]
ONE_LOAD = "set exactly one of --rate, --ramp, --concurrency, --trace"
A_RUN = "must be a directory written by 'load run' or 'load search'"


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
        # A long path is cut off.
        assert "_" not in re.sub(r"/\S*", "", words.replace(text, ""))


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
    assert main(["load", command, flag.name, text]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {flag.name} ")
    assert "Value error" not in error
    assert hint == f"hint:  moe-serving load {command} --help lists the flags"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_no_flag_is_abbreviated(flag: Flag, capsys: pytest.CaptureFixture[str]):
    command = "search" if flag in SEARCH[1] else "run"
    short = flag.name[:-1]
    assert main(["load", command, short, "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: unknown flag {short}; did you mean {flag.name}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["run", "--rate", "1", "--output", "5"],
         "unknown flag --output; did you mean --output-tokens?"),
        (["run", "--rate", "0"],
         "--rate 0: a rate must be a number of requests/s above 0, at most 1000000"),
        (["run", "--rate"], "--rate needs a value"),
        (["run"], f"no load specified: {ONE_LOAD}"),
        (["run", "--rate", "1", "--concurrency", "1"],
         f"--rate and --concurrency are mutually exclusive: {ONE_LOAD}"),
        (["run", "--rate", "1", "--rest-url", "http://h", "--grpc-address", "h:1"],
         "--rest-url and --grpc-address are mutually exclusive"),
        (["run", "--concurrency", "1", "--shard", "1/2"],
         "--shard cannot be used with --concurrency: set it separately for each worker"),
        (["search"], "a search requires a limit: --slo-ttft-ms, --slo-itl-ms or --slo-latency-ms"),
        (["search", "--slo-ttft-ms", "9", "--start", "5", "--most", "4"],
         "--start 5: must not be above --most 4"),
        (["report"], "FOLDER... is missing"),
        (["compare", "a"], f"A a: no such directory; {A_RUN}"),
        (["nothing"], "No such command 'nothing'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_lines_that_are_wrong(line, error, capsys):
    assert main(["load", *line]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


def test_a_key_is_in_no_error():
    assert "secret" not in refusal("--api-key", "secret\n", Text("a key"))


def test_a_folder_must_hold_what_is_read(tmp_path: Path):
    reads = ReadableDirectory("run.json")
    with pytest.raises(BadValue, match=r"contains no run\.json"):
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
    assert unknown("--zzz", ["--rate"]) == "unknown flag --zzz"
