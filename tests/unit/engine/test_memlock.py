"""Lockable memory: when the limit is too low for RDMA, and how it is raised."""

import resource
from pathlib import Path

import pytest

from serving.engine.memlock import NEEDED, limit, locks_freely, problem, text
from serving.engine.rdma import Host


def test_the_limit_is_this_processs():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert limit() == (None if soft == resource.RLIM_INFINITY else soft)


@pytest.mark.parametrize(("most", "free"), [(None, False), (NEEDED, False), (2**23, True)])
def test_enough(most, free):
    assert problem(most, free=free) is None


def test_too_little_is_told_with_the_remedy():
    message = problem(2**23, free=False)
    assert message is not None
    for word in ("8 MiB", "1 GiB", "LimitMEMLOCK=infinity", "rdma.memlock: root"):
        assert word in message


def test_sizes_in_words():
    words = [text(most) for most in (None, 2**16, 3 * 2**29, 100)]
    assert words == ["unlimited", "64 KiB", "1.5 GiB", "100 bytes"]


def test_the_capability_counts_only_in_effect(tmp_path):
    status = tmp_path / "self" / "status"
    status.parent.mkdir()
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\nSeccomp:\t0\n")
    assert not locks_freely(Host(proc=tmp_path))
    status.write_text(f"Name:\tx\nCapEff:\t{1 << 14:016x}\nSeccomp:\t0\n")
    assert locks_freely(Host(proc=tmp_path))
    assert not locks_freely(Host(proc=Path("/nonexistent")))
