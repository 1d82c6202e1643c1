"""fabric-check: flags, the index from Kubernetes, and a run with one peer."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from serving.cli.main import main
from serving.cli.ops.fabric_check import INDEX_VARIABLE
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--leader", "host"], "--leader must be HOST:PORT, the same on every peer, got host"),
        (
            ["--leader", "h:1", "--bytes", "some"],
            "--bytes must be a whole number with B, KiB, MiB or GiB, got some",
        ),
        (["--leader", "h:1", "--index", "2"], "--index must be 0 to 1 with --peers 2, got 2"),
        (["--leader", "h:1"], f"--index is missing, and {INDEX_VARIABLE} is not set"),
    ],
)
def test_bad_flags_are_named(flags, words, capsys, monkeypatch):
    monkeypatch.delenv(INDEX_VARIABLE, raising=False)
    if "--index" not in flags and words.startswith("--bytes"):
        flags = [*flags, "--index", "0"]
    assert main(["fabric-check", "--peers", "2", *flags]) == 1
    assert words in capsys.readouterr().err


def test_the_index_comes_from_kubernetes(monkeypatch, capsys):
    monkeypatch.setenv(INDEX_VARIABLE, "5")
    assert main(["fabric-check", "--peers", "2", "--leader", "h:1"]) == 1
    assert "--index must be 0 to 1 with --peers 2, got 5" in capsys.readouterr().err


def command(*flags):
    return [
        sys.executable, "-m", "serving", "fabric-check", "--peers", "1",
        "--leader", f"127.0.0.1:{held_port()}", "--timeout", "120", *flags,
    ]  # fmt: skip


def test_one_peer_with_two_workers_for_real():
    done = subprocess.run(
        command("--workers-per-peer", "2", "--bytes", "1MiB", "--rounds", "2"),
        env=os.environ | {INDEX_VARIABLE: "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "all-to-all: 2 workers (2 per peer), gloo" in done.stdout
    assert "no differences" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_worker(number):
    process = subprocess.Popen(
        command("--index", "0", "--bytes", "1MiB", "--rounds", "1000000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        for line in process.stderr:
            if "all-to-all, round" in line:
                break
        workers = psutil.Process(process.pid).children()
        assert workers
        process.send_signal(number)
        assert process.wait(PATIENCE) == (-9 if number == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
