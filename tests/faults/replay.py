"""Repeat one random history and print it, or run many and count violations.

python -m tests.faults.replay --seed 123 [--request r04]
python -m tests.faults.replay --from 0 --count 500
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from serving.flags.parser import FlagParser
from serving.flags.values import COUNT, ORDINAL
from tests.faults.history import Ended, Ran
from tests.faults.scenarios import Verdict, random_scenario, run_scenario


def main() -> int:
    """Print a history, or the violations of many; return 1 if there are any."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=ORDINAL, help="seed of the history to print")
    parser.add_argument(
        "--request", default="", help="print only the events of this request, and faults"
    )
    parser.add_argument("--from", dest="first", type=ORDINAL, default=0, help="first seed")
    parser.add_argument("--count", type=COUNT, default=100, help="number of seeds (without --seed)")
    options = parser.parse_args()
    if options.seed is not None:
        verdict = run_scenario(random_scenario(options.seed))
        say(*verdict.history.lines(options.request), str(verdict))
        return 1 if verdict.violations else 0
    began = time.monotonic()
    bad = 0
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.count):
        verdict = run_scenario(random_scenario(seed))
        counts.update(_counted(verdict))
        if verdict.violations:
            bad += 1
            say(f"seed {seed}: {verdict}")
    say(
        f"{options.count} histories in {time.monotonic() - began:.1f} s, {bad} with violations",
        *(f"  {number:8} {what}" for what, number in sorted(counts.items())),
    )
    return 1 if bad else 0


def _counted(verdict: Verdict) -> Iterable[str]:
    for event in verdict.history.events:
        if isinstance(event, Ended):
            yield f"requests: {event.how}"
            if event.how == "POISON_REQUEST" and not verdict.history.specs[event.request].poison:
                yield "requests: POISON_REQUEST, but not poison"
            if event.resumes and event.how == "FINISHED":
                yield f"requests: FINISHED after {event.resumes} resumptions"
        elif isinstance(event, Ran) and event.began:
            yield "requests started by engines"


def say(*lines: str) -> None:
    """Print lines."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
