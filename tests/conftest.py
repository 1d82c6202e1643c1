"""What holds for all tests: their order, their time-outs, a clean environment, an honest end."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent
ORDER = {
    "unit": 0,
    "helm": 1,
    "integration": 2,
    "bluegreen": 3,
    "faults": 4,
    "fuzz": 5,
    "docs": 6,
    "e2e": 7,
}
SLOW_MARKS = ("vllm", "e2e")
SLOW_TIMEOUT = 600  # seconds, for tests that start engines or Ray

# Examples are the same in every run: a red build means a change, not luck. On a busy machine
# the time of one example means nothing.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only files that have tests of the part of the suite that runs, if it is a slow one.

    A slow part is a few files; importing all others takes as long as many of its tests.
    """
    mark = config.getoption("markexpr").partition(" ")[0]
    if mark not in SLOW_MARKS or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text("utf-8") if collection_path.name.startswith("test_") else mark
    return True if mark not in text else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what is fast first; give slow tests their own time-out unless they say one."""
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


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own settings; where state is kept is no setting."""
    for name in list(os.environ):
        if name.startswith("MOE_SERVING_") and name != "MOE_SERVING_STATE_DIR":
            monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that could not be done here, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("could not be done on this machine")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        terminalreporter.write_line(f"{report.nodeid}: {reason}")
