"""Readers of flag values, for both typer and argparse.

A reader is called with the text of a flag and returns its value, or raises ``BadValue`` with the
accepted values as a sentence: "a rate must be a number of requests/s above 0". ``str(reader)``
is that sentence. The command-line parser adds the flag and the text (``messages.refusal``).
"""

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from serving.flags.messages import BadValue

Value = TypeVar("Value")

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_GRPC_SCHEME = re.compile(r"(ipv4|ipv6|unix|unix-abstract|vsock|xds):[^\s]+")
MAX_PORT = 65535
MAX_SECONDS = 10_000_000.0
"""Maximum duration on a command line, four months; within the range of event loop timers."""


@dataclass(frozen=True)
class WholeNumber:
    """A whole number within bounds."""

    noun: str
    """Name of the number, with an article: "a port"."""
    at_least: int = 1
    at_most: int = 10**9
    of: str = ""
    """Unit, as in "a whole number of tokens"."""

    def __call__(self, text: str) -> int:
        """Return the number."""
        if not _WHOLE.fullmatch(text) or not self.at_least <= int(text) <= self.at_most:
            raise BadValue(str(self))
        return int(text)

    def __str__(self) -> str:
        of = f" of {self.of}" if self.of else ""
        return f"{self.noun} must be a whole number{of} from {self.at_least} to {self.at_most}"


@dataclass(frozen=True)
class Number:
    """A finite number within bounds."""

    noun: str
    """Name of the number, with an article: "a rate"."""
    of: str = ""
    """Unit, as in "a number of seconds"."""
    above: float | None = None
    """Exclusive lower bound; if set, ``at_least`` is not used in the message."""
    at_least: float | None = None
    at_most: float = math.inf

    def __call__(self, text: str) -> float:
        """Return the number."""
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
            bounds = (
                f" from {self.at_least:g} to {most}" if most else f", at least {self.at_least:g}"
            )
        elif most:
            bounds = f", at most {most}"
        return f"{self.noun} must be a number{of}{bounds}"


COUNT = WholeNumber("the value")
ORDINAL = WholeNumber("the value", at_least=0, at_most=2**63)
AMOUNT = Number("the value", above=0, at_most=10**9)


def seconds(noun: str, *, zero: bool = False) -> Number:
    """Return a reader of a duration in seconds.

    Args:
        noun: Name of the duration, with an article.
        zero: Whether 0 is accepted.
    """
    low: dict[str, float] = {"at_least": 0.0} if zero else {"above": 0.0}
    return Number(noun, "seconds", at_most=MAX_SECONDS, **low)


@dataclass(frozen=True)
class Pair(Generic[Value]):
    """Two values with a separator: "A:B" or "I/N"."""

    part: Callable[[str], Value]
    """Reader of each value."""
    accepts: str
    """The accepted values as a sentence, for the message."""
    sign: str = ":"
    single: bool = False
    """Whether a single value is accepted and used for both."""
    holds: Callable[[Value, Value], bool] = lambda _first, _second: True
    """Returns whether the two values are a valid combination."""

    def __call__(self, text: str) -> tuple[Value, Value]:
        """Return both values."""
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
class CommaSeparated(Generic[Value]):
    """One or more values, separated by commas."""

    part: Callable[[str], Value]
    """Reader of each value."""

    def __call__(self, text: str) -> list[Value]:
        """Return the values."""
        return [self.part(word) for word in text.split(",")]

    def __str__(self) -> str:
        return f"{self.part}; separate multiple values with commas"


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: Sequence[str]

    def __call__(self, text: str) -> str:
        """Return the word."""
        if text not in self.words:
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"must be one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Text:
    """Printable text that is not blank."""

    noun: str
    """Name of the text, with an article."""

    def __call__(self, text: str) -> str:
        """Return the text."""
        if not text.strip() or not text.isprintable():
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"{self.noun} must be non-empty printable text"


class HttpUrl:
    """URL of an HTTP server, without query and fragment."""

    def __call__(self, text: str) -> str:
        """Return the URL."""
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
            "an address must be http://HOST[:PORT] or https://HOST[:PORT], with PORT from 1 to "
            f"{MAX_PORT}"
        )


class GrpcAddress:
    """Target of a gRPC channel: HOST:PORT, or any other URI scheme that gRPC resolves."""

    def __call__(self, text: str) -> str:
        """Return the address."""
        if _GRPC_SCHEME.match(text):
            return text  # gRPC validates these
        host, _, port = text.removeprefix("dns:").removeprefix("///").rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        known = _HOST.fullmatch(host) or (bare != host and _is_ip(bare))
        if not known or not _WHOLE.fullmatch(port) or not 1 <= int(port) <= MAX_PORT:
            raise BadValue(str(self))
        return text

    def __str__(self) -> str:
        return f"an address must be HOST:PORT, with PORT from 1 to {MAX_PORT}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
