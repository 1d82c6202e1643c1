"""The garbage collector and imported modules: hundreds of thousands of objects that stay."""

import contextlib
import gc
from collections.abc import Iterator


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
    """Keep all that there is now out of collections.

    One that looks at it stops the process for a good part of a second.
    """
    gc.collect()
    gc.freeze()
