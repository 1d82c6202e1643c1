"""The private Ray's calls are bounded in time; tests/e2e start a real one."""

import threading

from serving.cli.local.private_ray import call_within


def test_bounded_calls_end_in_time() -> None:
    forever = threading.Event()
    assert not call_within(lambda: forever.wait() and None, 0.05)
    forever.set()
    assert call_within(lambda: None, 5)
    assert not call_within(lambda: forever.wait(None) and 1 / 0, 5)
