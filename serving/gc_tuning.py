"""The garbage collector and the objects that stay: imported modules, and requests that run long.

A full collection looks at every object that is not frozen, and stops the process meanwhile: with
thousands of open streams for a good part of a second. So in a router what a full collection has
looked at is frozen, and the next one looks only at what has come since. What is frozen is freed as
soon as nothing refers to it; only rings of objects that die later stay. Those are looked for when
nothing runs, or when the process has grown a lot.
"""

import asyncio
import contextlib
import gc
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

_YOUNG = 3_000
"""Objects more than before, after which the young ones are looked at; more would spare little."""
_MIDDLE = 2
"""Collections of the young after which those are looked at that were left over."""
_FULL = 1
"""Collections of those after which there is a full one. Each of the three comes one or two later
than its number says, so it looks at ``_YOUNG`` x (``_MIDDLE`` + 2) x (``_FULL`` + 2) objects at
most: some 10 to 20 ms."""
_LOOK = 10.0
"""Seconds between two looks at the size of the process."""
_IDLE = 30
"""Looks in a row that found nothing to run, after which everything may be looked at."""
_GROWN, _GROWN_A_LOT = 2**27, 2**30
"""Bytes of growth at which everything is looked at: when nothing runs; at once."""
_STATM = Path("/proc/self/statm")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Do not collect meanwhile.

    While vLLM is imported the collector looks at ever more objects of which none is garbage: a
    fifth of the ten seconds that it takes (measured).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep() -> None:
    """Keep all that there is now out of collections, and collect less often.

    A collection that looks at all of it stops the process for a good part of a second. The young
    ones look at what was made since the last; at Python's 700 objects they come several times in
    one request, whose objects are in use then, and find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


def keep_always() -> None:
    """Like ``keep``, and so again after each full collection: for servers with many requests.

    Somebody has to ``look_after`` what stays so.
    """
    gc.set_threshold(_YOUNG, _MIDDLE, _FULL)
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)
    _collect_all()


def _collect_all() -> None:
    """Look at everything, and freeze it.

    Python puts a full collection off until a quarter as many objects are new as the last one had
    left over (cpython/Modules/gcmodule.c, long_lived_total). A second one, of almost nothing,
    makes that number small.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def _freeze(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:  # noqa: PLR2004  the oldest
        gc.freeze()


async def look_after(idle: Callable[[], bool]) -> None:
    """Look for garbage among what is frozen, now and then, when ``idle()``; until cancelled."""
    before, rested = resident_bytes(), 0
    while True:
        await asyncio.sleep(_LOOK)
        rested = rested + 1 if idle() else 0
        grown = resident_bytes() - before
        if grown > (_GROWN if rested >= _IDLE else _GROWN_A_LOT):
            gc.unfreeze()
            _collect_all()
            before = resident_bytes()
        elif grown < 0:
            before += grown


def resident_bytes() -> int:
    """Return the size of the process in memory; where Linux does not tell it, the most so far."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
