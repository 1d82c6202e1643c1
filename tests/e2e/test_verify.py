"""``moe-serving verify`` with real ranks: it passes correct layouts and fails a broken one."""

from pathlib import Path

import pytest

from tests.e2e.verifying import Verified, verify

pytestmark = pytest.mark.e2e

BROKEN_COMBINE = Path(__file__).resolve().parent.parent / "faults" / "broken_combine"


def test_two_ranks_give_the_tokens_of_one(verified: Verified) -> None:
    assert verified.done.returncode == 0, verified.done.stdout + verified.done.stderr
    assert "all 2 layouts generated the same tokens" in verified.done.stdout


def test_a_broken_combine_is_found(verified: Verified) -> None:
    flags = ("--ranks", "2", "--against", str(verified.kept))
    done = verify(*flags, search_path=BROKEN_COMBINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENT" in done.stdout
