"""Runs ``moe-serving verify`` as a user would."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_TIME_LIMIT = 1500


@dataclass(frozen=True)
class Verified:
    """A comparison of one rank with two."""

    done: subprocess.CompletedProcess[str]
    kept: Path
    """File with the single rank's answers."""


def verify(*flags: str, search_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for its end."""
    environment = dict(os.environ)
    if search_path is not None:
        environment["PYTHONPATH"] = str(search_path)
    return subprocess.run(
        [sys.executable, "-m", "serving", "verify", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIME_LIMIT,
    )
