"""Violations by fuzzed inputs, and their recorders."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


class Finding(AssertionError):
    """An input that violates an invariant."""


def demand(condition: object, what: str) -> None:
    """Raise Finding unless ``condition`` is true."""
    if not condition:
        raise Finding(what)


class NotingLoop(asyncio.SelectorEventLoop):
    """Records the exceptions of its callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.set_exception_handler(self._note)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")


class Errors:
    """Replaces a module's logger; keeps logged errors."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.lines: list[str] = []
        """Ignored messages."""

    def error(self, event: str, **fields: Any) -> None:
        self.found.append(f"{event}: {fields}")

    exception = error

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(f"{event}: {fields}")

    debug = warning = info


@contextlib.contextmanager
def errors_of(*modules: Any) -> Iterator[Errors]:
    """Collect the errors that ``modules`` log."""
    errors = Errors()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "log", errors))
        yield errors
