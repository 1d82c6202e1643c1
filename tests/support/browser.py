"""The browser that .ci/tools fetches, or one on the PATH."""

import shutil
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / ".tools"
FETCHED = TOOLS / "browser" / "chromium-headless-shell"
AXE = TOOLS / "axe" / "axe.min.js"
"""The accessibility engine that .ci/tools fetches."""
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")


def browser_or_skip() -> str:
    """Return the path of a Chromium; skip the test if there is none."""
    if FETCHED.is_file():
        return str(FETCHED)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: .ci/tools fetched none, on the PATH is no {', '.join(BROWSERS)}")
    return found
