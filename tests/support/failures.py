"""A pytest plugin: writes each failed test, with its message in one line, to a file.

``-p tests.support.failures``, with the file's path in the environment variable ``FAILURES_FILE``.
Lines are written at once, so that they exist even if pytest is killed.
"""

import os
from pathlib import Path

import pytest

VARIABLE = "FAILURES_FILE"
FIRST = 60
"""Length of the first line where the last is shown too, characters."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the writer, except in xdist's workers: the distributing process gets all reports."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer())


class _Writer:
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a failed setup, call or teardown of a test."""
        self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write a file that cannot be collected."""
        self._write(report)

    def _write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext
        with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid} - {in_one_line(message)}\n")


def in_one_line(message: str) -> str:
    """Return the first line of a message, and the last one unless pytest compares values there.

    The last line of a program's output gives the reason why it failed.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0].startswith(("assert ", "AssertionError")):
        return "".join(lines[:1])
    return f"{lines[0][:FIRST]} … {lines[-1]}"
