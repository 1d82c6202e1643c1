"""``python -m tests.support.watched REPORT router ...``: a server's process with a watchdog.

As ``python -m serving router ...``. From the end of its start-up on, each turn of its event loop
that computes too long (``WATCHDOG_LIMIT``: seconds) is a line of JSON in the file REPORT
(``ours``, ``stacks``, ...), the collector's time included; the last line, written when the process
ends in good order, says how many ``turns`` there were, and the ``worst``.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving import gc_tuning
from tests.support.watchdog import LIMIT, Turn, Watchdog


class Reporting(Watchdog):
    """Writes what it finds at once, and what it saw at the end."""

    def __init__(self, report: Path) -> None:
        super().__init__(
            limit=float(os.environ.get("WATCHDOG_LIMIT", LIMIT)), all_ours=True, collector=True
        )
        self._report = report

    def found(self, turn: Turn) -> None:
        super().found(turn)
        self.say(asdict(turn))

    def say(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self._report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Run the command line with the watchdog."""
    report = Path(sys.argv.pop(1))
    dogs: list[Reporting] = []
    keep: Callable[[], None] = gc_tuning.keep_always

    def keep_and_watch() -> None:
        keep()
        dog = Reporting(report)
        dogs.append(dog)
        asyncio.get_running_loop().call_soon(dog.__enter__)

    gc_tuning.keep_always = keep_and_watch  # type: ignore[assignment]  # the last thing before it serves
    from serving.cli.main import main as serve

    try:
        serve()
    finally:
        for dog in dogs:
            dog.say({"turns": dog.turns, "worst": dog.worst, "count": dog.count})


if __name__ == "__main__":
    main()
