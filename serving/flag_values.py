"""What a flag accepts, in words: readers of values that typer's and argparse's flags share.

A reader takes the text of a flag and returns its value, or raises ``BadValue`` with a sentence
that says what is accepted: "a rate is a number of requests/s above 0". Whoever parses the line
puts the flag and the text in front (``refusal``).
"""

import difflib
import ipaddress
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from serving.errors import InvalidRequest

Value = TypeVar("Value")

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_SCHEME = re.compile(r"(ipv4|ipv6|unix|unix-abstract|vsock|xds):[^\s]+")
_SHOWN = 80
"""Characters of a value that an error shows."""
_SIMILAR = 0.7
_SECRET = {"--api-key", "--token"}
"""Flags whose values no error shows."""
MOST_PORT = 65535
MOST_SECONDS = 10_000_000.0
"""Of any time on a command line (four months): timers of event loops take no more for sure."""


class BadValue(ValueError):
    """The value of a flag is not accepted; the message says what is."""


class FlagError(InvalidRequest):
    """The command line is wrong; ends a command with exit code 2."""

    hint = ""


def refusal(flag: str, text: str, accepted: object) -> str:
    """Return the one line that says what is wrong with ``flag``: its value, and what it takes."""
    shown = "…" if flag in _SECRET else text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    if not shown.isprintable() or not shown.strip():
        shown = repr(shown)
    return f"{flag} {shown}: {accepted}"


def nearest(word: str, known: Collection[str]) -> str | None:
    """Return the name that was probably meant by ``word``.

    A name that begins with it comes first, as that is what an abbreviation means.
    """
    name = word.partition("=")[0]
    longer = sorted(
        (one for one in known if one.startswith(name) and len(name) > len("--")),
        key=lambda one: (len(one), one),
    )
    similar = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_SIMILAR)
    found = longer or similar
    return found[0] if found else None


def unknown(word: str, known: Collection[str]) -> str:
    """Return the line for a flag that does not exist."""
    name = word.partition("=")[0]
    near = nearest(name, known)
    return f"{name} is not a flag" + (f"; did you mean {near}?" if near else "")


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    noun: str
    """With its article: "a port"."""
    at_least: int = 1
    at_most: int = 10**9
    of: str = ""
    """Unit, as in "a whole number of tokens"."""

    def __call__(self, text: str) -> int:
        """Read one."""
        if not _WHOLE.fullmatch(text) or not self.at_least <= int(text) <= self.at_most:
            raise BadValue(str(self))
        return int(text)

    def __str__(self) -> str:
        of = f" of {self.of}" if self.of else ""
        return f"{self.noun} is a whole number{of} from {self.at_least} to {self.at_most}"


@dataclass(frozen=True)
class Number:
    """A number, neither infinite nor not-a-number."""

    noun: str
    of: str = ""
    above: float | None = None
    at_least: float | None = None
    at_most: float = math.inf

    def __call__(self, text: str) -> float:
        """Read one."""
        if not _NUMBER.fullmatch(text):
            raise BadValue(str(self))
        value = float(text)
        low = value > self.above if self.above is not None else True
        low = low and (self.at_least is None or value >= self.at_least)
        if not low or not value <= self.at_most or not math.isfinite(value):
            raise BadValue(str(self))
        return value

    def __str__(self) -> str:
        of = f" of {self.of}" if self.of else ""
        most = _plain(self.at_most) if math.isfinite(self.at_most) else ""
        bounds = ""
        if self.above is not None:
            bounds = f" above {self.above:g}" + (f", at most {most}" if most else "")
        elif self.at_least is not None:
            bounds = f" from {self.at_least:g}" + (f" to {most}" if most else " up")
        elif most:
            bounds = f", at most {most}"
        return f"{self.noun} is a number{of}{bounds}"


COUNT = Whole("the value")
ORDINAL = Whole("the value", at_least=0, at_most=2**63)
AMOUNT = Number("the value", above=0, at_most=10**9)


def seconds(noun: str, *, zero: bool = False) -> Number:
    """Return the reader of a time; ``zero``: it may be none at all."""
    low: dict[str, float] = {"at_least": 0.0} if zero else {"above": 0.0}
    return Number(noun, "seconds", at_most=MOST_SECONDS, **low)


@dataclass(frozen=True)
class Pair(Generic[Value]):
    """Two values with a sign between them: "A:B", or "I/N"."""

    part: Callable[[str], Value]
    accepts: str
    sign: str = ":"
    single: bool = False
    """One value alone stands for both."""
    holds: Callable[[Value, Value], bool] = lambda _first, _second: True

    def __call__(self, text: str) -> tuple[Value, Value]:
        """Read one."""
        first, sign, second = text.partition(self.sign)
        second = second if sign or not self.single else first
        try:
            pair = self.part(first), self.part(second)
        except BadValue:
            raise BadValue(self.accepts) from None
        if not self.holds(*pair):
            raise BadValue(self.accepts)
        return pair

    def __str__(self) -> str:
        return self.accepts


@dataclass(frozen=True)
class Several(Generic[Value]):
    """Values with commas between them."""

    part: Callable[[str], Value]

    def __call__(self, text: str) -> list[Value]:
        """Read them; there is at least one."""
        return [self.part(word) for word in text.split(",")]

    def __str__(self) -> str:
        return f"{self.part}; several have commas between them"


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: Sequence[str]

    def __call__(self, text: str) -> str:
        """Read one."""
        if text not in self.words:
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)} is accepted"


@dataclass(frozen=True)
class Text:
    """Printable text that is not empty."""

    noun: str

    def __call__(self, text: str) -> str:
        """Read it."""
        if not text.strip() or not text.isprintable():
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"{self.noun} is printable text, not empty"


class WebAddress:
    """The address of an HTTP server."""

    def __call__(self, text: str) -> str:
        """Read one."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise BadValue(str(self)) from None
        host = parts.hostname or ""
        good = (
            parts.scheme in {"http", "https"}
            and port != 0
            and not parts.netloc.endswith(":")
            and (bool(_HOST.fullmatch(host)) or _is_ip(host))
        )
        if not good or not text.isprintable() or " " in text or parts.query or parts.fragment:
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return (
            f"an address is http://HOST[:PORT] or https://HOST[:PORT], PORT from 1 to {MOST_PORT}"
        )


class HostPort:
    """Host and port of a gRPC server."""

    def __call__(self, text: str) -> str:
        """Read one."""
        if _SCHEME.match(text):
            return text  # gRPC knows what these are
        host, _, port = text.removeprefix("dns:").removeprefix("///").rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        known = _HOST.fullmatch(host) or (bare != host and _is_ip(bare))
        if not known or not _WHOLE.fullmatch(port) or not 1 <= int(port) <= MOST_PORT:
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"an address is HOST:PORT, PORT from 1 to {MOST_PORT}"


class ReadableFile:
    """A file that is there and can be read."""

    def __call__(self, text: str) -> Path:
        """Read its name."""
        path = _path(text, self)
        if not path.exists():
            raise BadValue(f"there is no such file; {self}")
        if path.is_dir():
            raise BadValue(f"that is a directory; {self}")
        if not os.access(path, os.R_OK):
            raise BadValue(f"this user may not read it; {self}")
        return path

    def __str__(self) -> str:
        return "a file that can be read is accepted"


class ReadableFolder:
    """A directory that is there and holds ``names``; ``of``: who wrote it."""

    def __init__(self, *names: str, of: str = "") -> None:
        self.names = names
        self._of = of

    def __call__(self, text: str) -> Path:
        """Read its name."""
        path = _path(text, self)
        if not path.exists():
            raise BadValue(f"there is no such directory; {self}")
        if not path.is_dir():
            raise BadValue(f"that is no directory; {self}")
        missing = [name for name in self.names if not (path / name).exists()]
        if missing:
            raise BadValue(f"it has no {missing[0]}; {self}")
        return path

    def __str__(self) -> str:
        return f"a directory{f' that {self._of}' if self._of else ''} is accepted"


class OutputFolder:
    """A directory to write into; it is created where it is missing."""

    def __call__(self, text: str) -> Path:
        """Read its name."""
        path = _path(text, self)
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        if not there.is_dir():
            raise BadValue(f"{there} is a file; {self}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise BadValue(f"this user may not write into {there}; {self}")
        return path

    def __str__(self) -> str:
        return "a directory to write into is accepted; it is created if missing"


def _path(text: str, reads: object) -> Path:
    """Return a path that the system can have."""
    if not text.strip() or "\0" in text:
        raise BadValue(str(reads))
    path = Path(text)
    try:
        path.exists()
    except OSError as error:
        raise BadValue(f"{(error.strerror or 'unusable').lower()}; {reads}") from None
    return path


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
