"""Processor time that the host gave to others while this virtual machine wanted it (steal)."""

import psutil


class StolenTime:
    """Counts it from when it is made. Zero where the system does not tell (it is Linux's)."""

    def __init__(self) -> None:
        """Begin to count."""
        self._stolen, self._all = _now()

    def share(self) -> float:
        """Return its share of all processor time since the last call, 0 to 1."""
        stolen, everything = _now()
        share = (stolen - self._stolen) / max(everything - self._all, 1e-9)
        self._stolen, self._all = stolen, everything
        return share


def _now() -> tuple[float, float]:
    """Return stolen and all seconds since the machine started, over its processors.

    Guests' time, which proc(5) counts as user and nice time too, is not counted twice.
    """
    times = psutil.cpu_times()
    counted = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return getattr(times, "steal", 0.0), counted
