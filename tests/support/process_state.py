"""What a test file may leave behind in its process, and how it is put back.

Starting a router changes the process for good: vLLM sets environment variables that every later
child inherits (``LD_PRELOAD`` among them) and configures loggers, and Ray replaces the hook for
uncaught exceptions. Which files share a process is chance, so a later test must not see it.

What vLLM's own modules and classes become is not undone; ``tests/unit/vllm_adapter`` reads them
from their files.
"""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PYTESTS = "PYTEST_"
"""Prefix of environment variables that pytest sets for each test."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The environment, the current folder, the loggers and the hook for uncaught exceptions."""

    environment: dict[str, str]
    folder: Path
    loggers: dict[str, tuple[int, bool, bool, tuple[logging.Handler, ...]]]
    """By name, "" for the root: level, whether it propagates, whether it is disabled, handlers."""
    excepthook: Any

    @classmethod
    def now(cls) -> "ProcessState":
        """Return the current state."""
        loggers = {
            name: (each.level, each.propagate, each.disabled, tuple(each.handlers))
            for name, each in _loggers().items()
        }
        return cls(dict(os.environ), Path.cwd(), loggers, sys.excepthook)

    def restore(self) -> None:
        """Put the process back into this state; loggers that are new get their defaults."""
        for name in set(os.environ) | set(self.environment):
            value = self.environment.get(name)
            if name.startswith(_PYTESTS) or os.environ.get(name) == value:
                continue
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        os.chdir(self.folder)
        for name, each in _loggers().items():
            level, propagates, disabled, handlers = self.loggers.get(
                name, (logging.NOTSET, True, False, ())
            )
            if each.level != level:
                each.setLevel(level)
            each.propagate, each.disabled = propagates, disabled
            if tuple(each.handlers) != handlers:
                each.handlers[:] = handlers
        sys.excepthook = self.excepthook


def _loggers() -> dict[str, logging.Logger]:
    known = logging.Logger.manager.loggerDict
    found = {name: each for name, each in known.items() if isinstance(each, logging.Logger)}
    return {"": logging.getLogger(), **found}
