"""``python -m tests.support.watched REPORT router ...``: a server process with a watchdog.

Runs ``python -m serving router ...``. After start-up, each turn of the event loop that uses more
CPU time than ``WATCHDOG_LIMIT`` seconds, including the garbage collector, becomes a line of JSON in
the file REPORT (``ours``, ``stacks``, ...). The last line, written on a graceful exit, contains
the number of ``turns`` and the ``worst`` one.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving import process_tuning
from tests.support.watchdog import LIMIT, Turn, Watchdog


class Reporting(Watchdog):
    """Writes each long turn at once, and a summary at the end."""

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
    keep: Callable[[], None] = process_tuning.freeze_after_collections

    def keep_and_watch() -> None:
        keep()
        dog = Reporting(report)
        dogs.append(dog)
        asyncio.get_running_loop().call_soon(dog.__enter__)

    process_tuning.freeze_after_collections = keep_and_watch  # type: ignore[assignment]  # the last thing before it serves
    from serving.cli.main import main as serve

    try:
        serve()
    finally:
        for dog in dogs:
            dog.say({"turns": dog.turns, "worst": dog.worst, "count": dog.count})


if __name__ == "__main__":
    main()
