"""The time slice of a thread; each test uses a separate thread."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.engine.cpu_plugin.node_exchange import time_slice


def in_a_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_the_slice_is_shortened_and_nothing_else_changes():
    def run():
        before = time_slice._read()
        accepted = time_slice.request(time_slice.SHORTEST)
        after = time_slice._read()
        time_slice.request(time_slice.DEFAULT)
        return before, accepted, after, time_slice._read()

    before, accepted, after, again = in_a_thread(run)
    assert accepted
    assert (after.policy, after.nice) == (before.policy, before.nice)
    # 0 before Linux 6.12, which accepts and ignores it.
    assert after.runtime in {0, 100_000}
    assert again.runtime == before.runtime
    assert in_a_thread(time_slice._read).runtime == before.runtime  # other threads keep theirs


def test_a_system_call_that_is_forbidden_is_no_error(monkeypatch):
    monkeypatch.setattr(time_slice, "_syscall", lambda *_: -1)
    assert not time_slice.request(time_slice.SHORTEST)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to set a real-time policy")
def test_a_thread_with_a_real_time_policy_keeps_it():
    def run():
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            return False, os.SCHED_FIFO
        return time_slice.request(time_slice.SHORTEST), time_slice._read().policy

    assert in_a_thread(run) == (False, os.SCHED_FIFO)
