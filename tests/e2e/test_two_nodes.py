"""One group over two Ray nodes, each with its own network namespace."""

import contextlib
import os
import subprocess
import sys
import uuid

import psutil
import pytest

from tests.e2e.verifying import Verified
from tests.rig import netns

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not())),
]


RUN = {"MOE_TEST_RUN": str(uuid.uuid4())}
"""In the environment of every process that this file starts."""


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.rig.two_nodes", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env=os.environ | RUN,
    )


def leftovers() -> list[str]:
    """Return the processes of this file's runs that still exist."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().items() >= RUN.items():
                found.append(" ".join(process.cmdline())[:120])
    return found


def test_one_rank_a_node_and_the_tokens_of_one_process(verified: Verified) -> None:
    done = run("--against", str(verified.kept))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    nodes = {row[2] for row in rows if len(row) > 4 and row[2].startswith("10.77.0.")}
    assert nodes == {"10.77.0.2", "10.77.0.3"}
    assert "all 6 answers are the same" in done.stdout
    assert leftovers() == []


def test_a_missing_node_is_an_error_that_says_so() -> None:
    done = run("--nodes", "1", "--set", "group.placement_timeout=3")
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert "needs 2 nodes with 2 CPUs free each" in line
    assert "the cluster has room for 1 of 2: 10.77.0.2" in line
    assert "group.placement to spread or pack" in line
    assert leftovers() == []
