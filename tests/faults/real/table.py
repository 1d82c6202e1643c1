"""The table of rows, and rows as lines of JSON for another process."""

import json
import sys
from dataclasses import asdict

from tests.faults.real.rows import Row

_HEAD = (
    "groups",
    "fault",
    "requests",
    "completed",
    "text equal",
    "on struck",
    "longest gap s",
    "recovered s",
)
_WIDTHS = (6, 36, 8, 9, 10, 9, 13, 11)


def head() -> str:
    """Return the table's first line."""
    return _line(_HEAD)


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    recovered = "-" if row.recovered is None else f"{row.recovered:.1f}"
    cells = (
        str(row.groups),
        row.fault,
        row.kinds,
        f"{row.completed}/{row.streams}",
        f"{row.equal}/{row.streams}",
        str(row.resumed_on),
        f"{row.longest_gap:.2f}",
        recovered,
    )
    return _line(cells)


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def say(*lines: str) -> None:
    """Print lines and flush."""
    sys.stdout.writelines(f"{text}\n" for text in lines)
    sys.stdout.flush()


def say_row(row: Row) -> None:
    """Print a row and its note."""
    say(line(row), *(f"  {text}" for text in (row.note, *row.trouble) if text))


def to_json(row: Row) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(asdict(row))


def from_json(text: str) -> Row:
    """Return the row that ``to_json`` wrote."""
    fields = json.loads(text)
    return Row(**{**fields, "trouble": tuple(fields["trouble"])})
