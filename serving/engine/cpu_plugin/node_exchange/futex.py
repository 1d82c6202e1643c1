"""Futexes on words of memory that several processes map (futex(2), Linux)."""

import ctypes
import errno

_SYSCALL_NUMBER = 202
"""``SYS_futex`` on x86-64."""
_WAIT, _WAKE = 0, 1
_ALL = 2**31 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wait(address: int, value: int, timeout: float) -> None:
    """Sleep while the word equals ``value``, until it is woken, or until the timeout.

    The call can return early; callers must check the word again. Other threads of the process keep
    running.

    Args:
        address: Address of a 4-byte-aligned word.
        value: Value that the word is expected to have, an unsigned 32-bit number.
        timeout: Maximum time to sleep, seconds.

    Raises:
        OSError: The address is invalid, or the kernel has no futexes.
    """
    limit = _Timespec(int(timeout), int(timeout % 1 * 1e9))
    done = _syscall(
        ctypes.c_long(_SYSCALL_NUMBER),
        ctypes.c_void_p(address),
        ctypes.c_int(_WAIT),
        ctypes.c_uint32(value),
        ctypes.byref(limit),
        None,
        ctypes.c_int(0),
    )
    if done < 0:
        number = ctypes.get_errno()
        if number not in {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}:
            raise OSError(number, f"futex wait: {errno.errorcode.get(number, number)}")


def wake(address: int) -> None:
    """Wake all threads of all processes that wait on the word. Includes a full memory barrier."""
    _syscall(
        ctypes.c_long(_SYSCALL_NUMBER),
        ctypes.c_void_p(address),
        ctypes.c_int(_WAKE),
        ctypes.c_int(_ALL),
        None,
        None,
        ctypes.c_int(0),
    )
