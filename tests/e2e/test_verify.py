"""``moe-serving verify`` with real ranks: it passes what is right and fails what is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BROKEN_COMBINE = Path(__file__).resolve().parent.parent / "faults" / "broken_combine"
TIME_LIMIT = 540


def verify(*flags: str, search_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if search_path is not None:
        environment["PYTHONPATH"] = str(search_path)
    return subprocess.run(
        [sys.executable, "-m", "serving", "verify", "--prompts", "6", "--max-tokens", "24", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT,
    )


def test_two_ranks_give_the_tokens_of_one() -> None:
    done = verify("--ranks", "1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 2 layouts gave the same tokens" in done.stdout


def test_a_broken_combine_is_found() -> None:
    done = verify("--ranks", "1,2", search_path=BROKEN_COMBINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENT" in done.stdout
