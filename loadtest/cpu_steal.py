"""CPU steal: time in which this virtual machine was runnable but the host ran others."""

import psutil


class CpuSteal:
    """Measures CPU steal between calls; always 0 on systems other than Linux."""

    def __init__(self) -> None:
        """Start measuring."""
        self._stolen, self._all = _now()

    def share(self) -> float:
        """Return the stolen share of all CPU time since the last call, 0 to 1."""
        stolen, everything = _now()
        share = (stolen - self._stolen) / max(everything - self._all, 1e-9)
        self._stolen, self._all = stolen, everything
        return share


def _now() -> tuple[float, float]:
    """Return stolen and total CPU seconds since boot, over all processors.

    Guest time, which proc(5) includes in user and nice time, is not counted twice.
    """
    times = psutil.cpu_times()
    counted = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return getattr(times, "steal", 0.0), counted
