"""The command line from outside: exit codes, files, and no traceback."""

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


async def loadtest(*words):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *map(str, words), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    text = out.decode()
    assert "Traceback" not in text
    return process.returncode, text


@pytest.mark.parametrize(
    ("limit", "code"), [pytest.param(60_000, 0, id="met"), pytest.param(0.001, 3, id="missed")]
)
async def test_the_exit_code_is_the_objective(server, tmp_path, limit, code):
    line = ("--rate", 50, "--duration", 0.5, "--warmup", 0, "--slo-ttft-ms", limit)
    found, text = await loadtest("run", "--rest-url", server.url, *line, "--out", tmp_path / "out")
    assert found == code, text
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "records.jsonl", "run.json", "report.html",
    }  # fmt: skip


async def test_one_line_says_that_nobody_is_there(tmp_path):
    line = ("run", "--rest-url", "http://127.0.0.1:1", "--rate", 1, "--out", tmp_path / "out")
    code, text = await loadtest(*line)
    assert code == 1
    assert text.startswith(
        "error: the server is not available: cannot connect to http://127.0.0.1:1"
    )


async def test_two_runs_are_compared(server, tmp_path):
    for name in "ab":
        line = ("--rate", 50, "--duration", 0.4, "--warmup", 0, "--out", tmp_path / name)
        assert (await loadtest("run", "--rest-url", server.url, *line))[0] == 0
    code, text = await loadtest("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "95 % interval" in text
    assert "the loads differ" not in text
    line = ("--rate", 40, "--duration", 0.4, "--warmup", 0, "--out", tmp_path / "other")
    await loadtest("run", "--rest-url", server.url, *line)
    _, text = await loadtest("compare", tmp_path / "a", tmp_path / "other")
    assert "the loads differ: A 50 requests/s, B 40 requests/s" in text
    assert (await loadtest("compare", tmp_path / "a", tmp_path / "none"))[0] == 2
    joined = ("report", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "c")
    assert (await loadtest(*joined))[0] == 0


async def test_a_key_on_the_command_line_is_kept_nowhere(server, tmp_path):
    line = ("--rate", 20, "--duration", 0.3, "--warmup", 0, "--api-key", "moe-secret-key")
    await loadtest("run", "--rest-url", server.url, *line, "--out", tmp_path)
    for file in tmp_path.iterdir():
        assert "moe-secret-key" not in file.read_text()
