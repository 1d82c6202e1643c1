"""The private Ray's calls are bounded in time; tests/e2e start a real one."""

import contextlib
import io
import threading
from pathlib import Path

import pytest

from serving.cli.local import private_ray
from serving.cli.local.private_ray import call_within
from serving.cli.local.progress import LineProgress
from serving.clock import SystemClock
from serving.engine.ray import cluster
from serving.settings import Settings


def test_bounded_calls_end_in_time() -> None:
    forever = threading.Event()
    assert not call_within(lambda: forever.wait() and None, 0.05)
    forever.set()
    assert call_within(lambda: None, 5)
    assert not call_within(lambda: forever.wait(None) and 1 / 0, 5)


@pytest.mark.parametrize(
    ("failures", "starts"),
    [pytest.param(3, True, id="three failures"), pytest.param(4, False, id="four failures")],
)
def test_a_slow_ray_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, failures: int, starts: bool
) -> None:
    forgotten: list[Path] = []
    attempts = iter(range(100))
    running = cluster.PrivateRay(address="", folder=tmp_path, token="", dashboard_url=None)

    def start_private(_settings: Settings) -> cluster.PrivateRay:
        number = next(attempts)
        if number < failures:
            raise cluster.RayNotStarted("too slow", tmp_path / str(number))
        return running

    monkeypatch.setattr(cluster, "start_private", start_private)
    monkeypatch.setattr(cluster, "disconnect", lambda: None)
    monkeypatch.setattr(cluster, "forget", forgotten.append)
    ray = private_ray.RayProcesses(Settings(), LineProgress(io.StringIO(), SystemClock()), tmp_path)
    monkeypatch.setattr(private_ray, "end", lambda *_arguments, **_keywords: [])
    with contextlib.nullcontext() if starts else pytest.raises(cluster.RayNotStarted):
        assert ray.start(lambda: None, None) is running
    assert forgotten == [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
