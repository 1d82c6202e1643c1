"""A short time slice for threads that other ranks wait for (sched_setattr(2), Linux 6.12).

A waiting rank sleeps, and is woken when the last rank arrives. If another process is running on its
core at that time, Linux lets it finish its time slice, in practice until the next tick (4 ms at 250
Hz), unless the woken thread has requested a shorter slice. A thread's share of CPU time does not
depend on its slice. Before Linux 6.12, the request has no effect.
"""

import ctypes
import os

_SETATTR, _GETATTR = 314, 315
"""System call numbers on x86-64."""
SHORTEST = 100_000
"""The shortest slice that Linux grants, nanoseconds."""
DEFAULT = 0
"""The slice of threads that have not requested a shorter one."""
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Attributes(ctypes.Structure):
    """The first version of ``struct sched_attr``."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def request(nanoseconds: int) -> bool:
    """Request a time slice for the calling thread, whose policy and nice value are unchanged.

    Returns:
        Whether Linux accepted the request. Linux rejects the request for threads with a real-time
        policy, and a container can prohibit the system call.
    """
    now = _read()
    if now is None or now.policy not in _FAIR:
        return False
    size = ctypes.sizeof(_Attributes)
    wanted = _Attributes(size, now.policy, now.flags, now.nice, now.priority, nanoseconds)
    return bool(_syscall(_SETATTR, 0, ctypes.byref(wanted), 0) == 0)


def _read() -> _Attributes | None:
    attributes = _Attributes()
    done = _syscall(_GETATTR, 0, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return attributes if done == 0 else None
