"""Rules for all tests: order, timeouts, a clean environment, a list of skipped tests."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.process_state import ProcessState

ROOT = Path(__file__).resolve().parent
ORDER = {
    "unit": 0,
    "docs": 1,
    "helm": 2,
    "faults": 3,
    "integration": 4,
    "bluegreen": 5,
    "fuzz": 6,
    "e2e": 7,
}
"""Order of the folders.

Unit tests come first: they inspect their process, in which other tests leave threads, connections
and databases. Then come the files that take longest: a file runs in one process of pytest-xdist, so
none of them should start last.
"""
SLOW_MARKS = ("vllm", "e2e")
SLOW_TIMEOUT = 1800  # seconds, for tests that start engines or Ray

_FIRST = pytest.StashKey[ProcessState]()
"""The state of the process before its first test."""

# Collection imports millions of objects that are never freed: the garbage collector does not scan
# them during or after collection. This saves a quarter of the suite's CPU time.
gc.disable()

# Examples are the same in every run, so that a build only fails because of a change. There is no
# deadline per example and no limit on the time to make one, because these times depend on the
# machine.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the files with slow tests if ``-m`` begins with their mark.

    These are a few files; importing all others takes as long as many of their tests.
    """
    mark = config.getoption("markexpr").partition(" ")[0]
    if mark not in SLOW_MARKS:
        return None
    folder = collection_path.is_dir()
    files = collection_path.rglob("test_*.py") if folder else [collection_path]
    return not any(f"mark.{mark}" in file.read_text("utf-8") for file in files) or None


def pytest_collection_finish() -> None:
    """Exclude the imported objects, including the little garbage among them, from collections."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests; give slow ones a longer timeout unless they set one."""
    for item in items:
        slow = any(item.get_closest_marker(mark) for mark in SLOW_MARKS)
        if slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
    items.sort(key=_position)


def _position(item: pytest.Item) -> tuple[int, bool]:
    # The sort is stable, so tests of one file, and the fixtures they share, stay together.
    return ORDER.get(_folder(item), len(ORDER)), item.get_closest_marker("vllm") is not None


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).parts[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Put back at the end of each file what it has changed in the process."""
    if _FIRST not in item.config.stash:
        item.config.stash[_FIRST] = ProcessState.now()
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            item.config.stash[_FIRST].restore()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's settings from the environment, except the state folder."""
    for name in list(os.environ):
        if name.startswith("MOE_SERVING_") and name != "MOE_SERVING_STATE_DIR":
            monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the skipped tests with their reasons."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("not possible on this machine")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        terminalreporter.write_line(f"{report.nodeid}: {reason}")
