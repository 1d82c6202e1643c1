"""Ports for servers that a test starts later, or for addresses at which nobody listens."""

from serving.net import HeldPort

_HELD: list[HeldPort] = []


def held_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody else is given until this process ends.

    Tests run side by side: a port that was merely free can belong to another test by the time that
    a server of this one has started.
    """
    _HELD.append(HeldPort(host))
    return _HELD[-1].port
