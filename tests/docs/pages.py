"""The commands of a Markdown page.

A command is a line of a ``console`` block that begins with ``$ ``, with the lines that continue
it (a backslash, an open quote, a here-document), or a code span in the text that begins with the
name of one of ``PROGRAMS``. A YAML block whose first line is ``# NAME.yaml`` is a file that
commands use.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("kubectl", "helm", "moe-serving", "openssl", "kind")
"""Programs whose name at the start of a code span makes it a command."""

_FENCE = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_FILE = re.compile(r"# (?P<name>[\w.-]+\.yaml)\n")
_HERE_DOCUMENT = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    text: str
    typed: bool
    """Whether it is in a ``console`` block and runs as written; otherwise it is a code span."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> list[Path]:
    """Return all Markdown pages of the project."""
    folders = [ROOT / "deploy", ROOT / "helm", ROOT / "loadtest", ROOT / "tests"]
    found = [path for folder in folders for path in folder.rglob("*.md")]
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return sorted([*top, *found])


def commands(page: Path) -> list[Command]:
    """Return the commands of a page in order."""
    text = page.read_text("utf-8")
    name = str(page.relative_to(ROOT))
    found: list[Command] = []
    position = 0
    for fence in _FENCE.finditer(text):
        found += _spans(name, text, position, fence.start())
        start = text.count("\n", 0, fence.start("body")) + 1
        if fence["language"] == "console":
            found += _typed(name, start, fence["body"])
        position = fence.end()
    return [*found, *_spans(name, text, position, len(text))]


def stray(page: Path) -> list[str]:
    """Return commands in blocks of another language, which the tests do not read."""
    return [
        line
        for fence in _FENCE.finditer(page.read_text("utf-8"))
        if fence["language"] != "console"
        for line in fence["body"].splitlines()
        if line.strip().removeprefix("$ ").split(" ")[0] in PROGRAMS
    ]


def files(page: Path) -> dict[str, str]:
    """Return the files that a page shows, by name; later blocks replace earlier ones."""
    found = {}
    for fence in _FENCE.finditer(page.read_text("utf-8")):
        if fence["language"] == "yaml" and (named := _FILE.match(fence["body"])):
            found[named["name"]] = fence["body"]
    return found


def _typed(page: str, start: int, body: str) -> Iterator[Command]:
    lines = iter(enumerate(body.splitlines(), start))
    for number, line in lines:
        if not line.lstrip().startswith("$ "):
            continue  # output of a command
        text = line.lstrip().removeprefix("$ ")
        while _continues(text):
            _, following = next(lines, (0, None))
            if following is None:
                raise ValueError(f"{page}:{number}: incomplete command: {text}")
            text += "\n" + following
        yield Command(page, number, text, typed=True)


def _continues(text: str) -> bool:
    """Return whether a command continues on the next line."""
    if text.endswith("\\"):
        return True
    if (here := _HERE_DOCUMENT.search(text)) is not None:
        return f"\n{here[1]}" not in text
    try:
        shlex.split(text, comments=True)
    except ValueError:  # an open quote
        return True
    return False


def _spans(page: str, text: str, start: int, end: int) -> Iterator[Command]:
    for span in _SPAN.finditer(text, start, end):
        words = " ".join(span[1].split())
        if words.split(" ")[0] in PROGRAMS and " " in words:
            yield Command(page, text.count("\n", 0, span.start()) + 1, words, typed=False)
