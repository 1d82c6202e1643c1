"""The fabric check between network namespaces with real gloo: passes, or names the cut."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import netns

pytestmark = [
    pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not())),
]
ENDLESS = ("--rounds", "100000", "--bytes", "1MiB", "--timeout", "120")
"""Amount of data that takes longer than the time until the cut; the check has 58 s for it."""


def play(folder, fault, peers, *flags):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("scenario.py")), str(folder), fault,
         str(peers), *flags],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    # No peer hangs, and none leaves a worker behind.
    assert None not in seen["codes"], seen
    assert seen["left"] == [[]] * peers, seen
    return seen


def reason(seen, peer=0):
    lines = [line for line in seen["said"][peer].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, seen["said"][peer]
    return lines[0]


def test_two_nodes_pass(tmp_path):
    seen = play(tmp_path, "nothing", 2, "--bytes", "2MiB", "--rounds", "2", "--timeout", "120")
    assert seen["codes"] == [0, 0], seen["said"]
    assert "all-to-all: 2 workers (1 per peer), gloo" in seen["said"][0]
    # A warm-up of 1 MiB, 2 MiB of the pair and two rounds, on both.
    assert "contents: 14 MiB compared, no differences" in seen["said"][0]
    assert "DeepEP over NVSHMEM: not checked: not installed" in seen["said"][0]


def test_a_cable_cut_before_the_start(tmp_path):
    seen = play(tmp_path, "cable", 2, "--timeout", "24")
    assert seen["codes"] == [1, 1]
    assert "peer 1 did not join within 12 s" in reason(seen)
    assert "the leader (peer 0, 10.79.0.2:29500) did not respond" in reason(seen, 1)
    assert "10.79.0.2 does not respond" in reason(seen, 1)


def test_a_cable_cut_while_data_move(tmp_path):
    seen = play(tmp_path, "cable-later", 3, *ENDLESS)
    assert seen["codes"] == [1, 1, 1]
    assert seen["seconds"] is not None, seen["said"][0]
    assert "peer 2 (" in reason(seen)
    assert "10.79.0.4) stopped responding" in reason(seen)
    assert "also lost by peer 1" in reason(seen)
    assert reason(seen, 1) == reason(seen)
    assert "this pod's own cable or network is cut" in reason(seen, 2)


@pytest.mark.parametrize("fault", ["pair", "pair-later"])
def test_two_of_three_that_do_not_reach_each_other(tmp_path, fault):
    seen = play(tmp_path, fault, 3, *ENDLESS)
    assert seen["codes"] == [1, 1, 1]
    text = reason(seen)
    assert "10.79.0.3) and peer 2 (" in text
    assert "10.79.0.4) cannot reach each other" in text
    assert "but both reach peer 0" in text
    assert reason(seen, 1) == reason(seen, 2) == text
