"""Definition of a vLLM patch: a probe that detects the bug, and a correction."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patch:
    """Workaround for one possible bug of vLLM on CPU."""

    name: str
    """Name for the log, e.g. ``"expert map"``."""
    is_right: Callable[[], bool]
    """Runs vLLM's current code on a small input and checks the result."""
    apply: Callable[[], None]
    """Replaces the faulty code in this process."""


def apply_if_needed(patch: Patch) -> bool:
    """Apply a patch if its probe fails; return whether it was applied.

    Raises:
        RuntimeError: The probe still fails after the patch.
    """
    if patch.is_right():
        return False
    patch.apply()
    if not patch.is_right():
        raise RuntimeError(
            f"vLLM computes wrong results on CPU, and moe-serving's patch "
            f"({patch.name}) does not fix it; use vLLM 0.32.0, or report this to the maintainers "
            "of moe-serving",
        )
    return True
