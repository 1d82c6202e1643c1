"""The resources of this machine."""

from serving.cli.doctor import machine


def test_a_shortage_is_what_is_missing_and_never_negative(monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 10)
    assert machine.memory_shortage(25) == 15
    assert machine.memory_shortage(5) == 0


def test_the_containers_limit_counts(monkeypatch):
    monkeypatch.setattr(machine, "container_headroom", lambda: 7)
    assert machine.memory_available() == 7
    monkeypatch.setattr(machine, "container_headroom", lambda: None)
    assert machine.memory_available() > 2**20


def test_cores_are_counted():
    assert machine.cores() >= 1
