"""The garbage collector and imported modules: hundreds of thousands of objects that stay."""

import contextlib
import gc
from collections.abc import Iterator

_YOUNG = 3_000
"""Objects more than before, after which the young ones are looked at; more would spare little."""


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
