"""Process-wide tuning of long-running servers: garbage collection and the open-file limit.

A full garbage collection stops the process while it scans every object that is not frozen. With
thousands of open streams, this takes a large part of a second. A router therefore freezes the
survivors of each full collection (``gc.freeze``), and the next one scans only objects created
since. Reference counting still frees frozen objects. Only reference cycles among them leak;
``collect_when_idle`` collects those while the router is idle or when the process has grown a lot.
"""

import asyncio
import contextlib
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_YOUNG_THRESHOLD = 3_000
"""Number of net new objects that trigger a collection of the young generation (Python's default:
700)."""
_MIDDLE_THRESHOLD = 2
"""Number of collections of the young generation that trigger one of the middle generation."""
_FULL_THRESHOLD = 1
"""Number of collections of the middle generation that trigger a full one. CPython collects each
generation one or two counts later than its threshold says."""
_MAX_SCANNED = _YOUNG_THRESHOLD * (_MIDDLE_THRESHOLD + 2) * (_FULL_THRESHOLD + 2)
"""Maximum number of objects that one collection scans, which takes 10 to 20 ms. The thresholds
count created objects minus freed ones. If old requests end as fast as new ones begin, that count
stays near 0 while the list of young objects grows to all objects in use; a list that has grown
beyond this number is frozen without a scan."""
_CHECK_INTERVAL = 10.0
"""Time between two checks of the process size, seconds."""
_IDLE_CHECKS = 30
"""Number of consecutive idle checks after which frozen objects may be scanned at the lower growth
limit."""
_GROWTH_WHEN_IDLE, _GROWTH_WHEN_BUSY = 2**27, 2**30
"""Growth after which frozen objects are scanned, for an idle and for a busy process, bytes."""
_STATM = Path("/proc/self/statm")

SWITCH_INTERVAL = 0.5e-3
"""Time that another thread may hold the interpreter while the event loop waits, seconds. Prompts
are rendered in threads; with Python's default, 5 ms, the event loop could wait that long after each
system call."""
MAX_OPEN_FILES = 65536
"""Open-file limit that a router requests."""


def tune_process() -> None:
    """Tune a server process. Call once, after all imports and setup."""
    freeze_after_collections()
    sys.setswitchinterval(SWITCH_INTERVAL)
    raise_open_files_limit()


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Disable garbage collection within the block, for long imports.

    While vLLM is imported, the collector scans an ever-growing number of objects and finds no
    garbage. Measured cost: one fifth of a ten-second import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def freeze_existing() -> None:
    """Exclude all existing objects from collections, and collect the young generation less often.

    At Python's default threshold, the young generation is collected several times per request,
    while the objects of that request are still in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_THRESHOLD, *gc.get_threshold()[1:])


def freeze_after_collections() -> None:
    """Freeze all existing objects now, and the survivors of every full collection from now on.

    Intended for servers with many requests. Also run ``collect_when_idle``, which collects
    reference cycles among the frozen objects.
    """
    gc.set_threshold(_YOUNG_THRESHOLD, _MIDDLE_THRESHOLD, _FULL_THRESHOLD)
    if _bound_collection not in gc.callbacks:
        gc.callbacks.append(_bound_collection)
    collect_and_freeze()


async def collect_when_idle(idle: Callable[[], bool]) -> None:
    """Collect frozen garbage when the process has grown; runs until cancelled.

    Args:
        idle: Returns whether the process is idle. A busy process is collected only after growing by
            ``_GROWTH_WHEN_BUSY``.
    """
    before, idle_checks = resident_bytes(), 0
    while True:
        await asyncio.sleep(_CHECK_INTERVAL)
        idle_checks = idle_checks + 1 if idle() else 0
        growth = resident_bytes() - before
        if growth > (_GROWTH_WHEN_IDLE if idle_checks >= _IDLE_CHECKS else _GROWTH_WHEN_BUSY):
            gc.unfreeze()
            collect_and_freeze()
            before = resident_bytes()
        elif growth < 0:
            before += growth


def resident_bytes() -> int:
    """Return the resident set size in bytes; without /proc, the peak value."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def raise_open_files_limit() -> None:
    """Raise the soft open-file limit to ``MAX_OPEN_FILES`` or the hard limit, if lower.

    Each client connection uses one file; the usual soft limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def collect_and_freeze() -> None:
    """Scan all objects and freeze the survivors.

    CPython postpones a full collection until the number of new objects reaches a quarter of the
    survivors of the last one (``long_lived_total``). The second collection scans almost nothing
    and resets ``long_lived_total`` to a small number.
    """
    with _unbounded():
        gc.collect()
    gc.freeze()
    gc.collect()


@contextlib.contextmanager
def _unbounded() -> Iterator[None]:
    """Let collections within the block scan any number of objects."""
    was_bounded = _bound_collection in gc.callbacks
    if was_bounded:
        gc.callbacks.remove(_bound_collection)
    try:
        yield
    finally:
        if was_bounded:
            gc.callbacks.append(_bound_collection)


def _bound_collection(phase: str, info: dict[str, int]) -> None:
    """Freeze the survivors of a full collection, and lists that are too long to scan."""
    generation = info["generation"]
    if phase == "stop":
        if generation == 2:  # noqa: PLR2004  the oldest generation
            gc.freeze()
    # No bytecode runs between get_objects and len, so no other thread runs either. If one was
    # building a tuple from a generator, a reference to the unfinished tuple would make it fail
    # (SystemError).
    elif sum(map(len, map(gc.get_objects, range(generation + 1)))) > _MAX_SCANNED:
        gc.freeze()
