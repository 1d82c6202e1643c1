"""Writes the generated pages, or compares them.

    python -m deploy.docs.generate            write all
    python -m deploy.docs.generate --check    exit 1 if a page differs from what would be written

The page of the REST API requires a router with vLLM, which takes a quarter of a minute to import;
it is therefore not checked by ``--check`` but by tests/integration/edge/test_reference.py.
"""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.docs.generate import chart, commands, protos, rest, settings, tables
from serving.flags.parser import FlagParser

DOCS = Path(__file__).resolve().parents[1]
WHOLE: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/grpc.md": protos.page,
    "reference/chart.md": chart.page,
}
"""Pages that are generated as a whole."""
PARTS: dict[str, Callable[[str], str]] = {
    "errors.md": tables.errors_page,
    "metrics.md": tables.metrics_page,
}
"""Hand-written pages with generated tables."""
REST = "reference/rest.md"


def pages() -> dict[str, str]:
    """Return the up-to-date text of every page except that of the REST API, by path."""
    whole = {name: make() for name, make in WHOLE.items()}
    parts = {name: make((DOCS / name).read_text("utf-8")) for name, make in PARTS.items()}
    return whole | parts


def main(arguments: list[str] | None = None) -> int:
    """Write or compare the pages; return the exit code."""
    parser = FlagParser(prog="python -m deploy.docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    try:
        made = pages()
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.check:
        for name, text in (made | {REST: rest.generate()}).items():
            (DOCS / name).write_text(text, "utf-8")
        return 0
    stale = [name for name, text in made.items() if (DOCS / name).read_text("utf-8") != text]
    for name in stale:
        old = (DOCS / name).read_text("utf-8").splitlines()
        changes = difflib.unified_diff(old, made[name].splitlines(), name, "generated", n=0)
        print("\n".join(list(changes)[:20]))
    if stale:
        print(f"error: not as generated: {', '.join(stale)}\nhint:  make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
