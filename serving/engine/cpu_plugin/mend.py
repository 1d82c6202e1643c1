"""What a mend is: a probe that says whether vLLM is wrong, and the cure."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mend:
    """One thing that vLLM may have wrong on CPU."""

    name: str
    """For the log, e.g. ``"expert map"``."""
    is_right: Callable[[], bool]
    """Runs vLLM's present code on a small input and compares with what is right."""
    apply: Callable[[], None]
    """Replaces vLLM's code in this process."""


def settle(mend: Mend) -> bool:
    """Apply ``mend`` if its probe says that it is needed; return whether it was.

    Raises:
        RuntimeError: vLLM is still wrong after the mend.
    """
    if mend.is_right():
        return False
    mend.apply()
    if not mend.is_right():
        raise RuntimeError(
            f"vLLM on CPU is wrong in a way that moe-serving does not know how to mend "
            f"({mend.name}); use vLLM 0.32.0 or tell the maintainers of moe-serving",
        )
    return True
