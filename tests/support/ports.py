"""Ports for servers that a test starts later, or for addresses without a listener."""

from serving.net import HeldPort

_HELD: list[HeldPort] = []


def held_port(host: str = "127.0.0.1") -> int:
    """Return a port that is reserved until this process ends.

    Tests run concurrently: a port that was only free can be used by another test before a server of
    this test has started.
    """
    _HELD.append(HeldPort(host))
    return _HELD[-1].port
