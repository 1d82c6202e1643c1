from typing import NamedTuple

import psutil
import pytest

from loadtest.cpu_steal import CpuSteal


class Linux(NamedTuple):
    user: float
    nice: float = 0.0
    system: float = 5.0
    idle: float = 80.0
    iowait: float = 0.0
    steal: float = 5.0
    guest: float = 3.0
    guest_nice: float = 0.0


class Other(NamedTuple):
    user: float
    idle: float


def test_the_share_since_the_last_call(monkeypatch):
    now = Linux(10)
    monkeypatch.setattr(psutil, "cpu_times", lambda: now)
    host = CpuSteal()
    now = now._replace(user=14, idle=84, steal=7, guest=6)
    assert host.share() == pytest.approx(0.2)
    now = now._replace(idle=94)
    assert host.share() == 0
    assert host.share() == 0


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_times", lambda: Other(1, 8))
    host = CpuSteal()
    monkeypatch.setattr(psutil, "cpu_times", lambda: Other(2, 9))
    assert host.share() == 0
