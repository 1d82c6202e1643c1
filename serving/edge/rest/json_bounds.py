"""How many values a JSON body may hold.

Bytes do not bound what a body costs: four megabytes hold two million values, and parsing and
checking them takes seconds in which no other request is served. So values are counted as the body
comes, before anything parses it, at some nanoseconds a byte. Long lists of token ids are cheap, and
have a limit of their own.
"""

import re
from dataclasses import dataclass, field

MOST_VALUES = 16_384
"""Objects, lists, and commas outside of strings; the use of a tool in a conversation has some
fifteen."""
_COSTLY = frozenset({"/v1/responses"})
"""Paths where a value costs more: an input may be of some thirty types there."""
MOST_IDS = 2**18
"""Commas between integers under a name in ``_IDS``; a context of DeepSeek-R1 has fewer tokens."""
_IDS = frozenset({b"prompt", b"tokens", b"input"})
_LONG = 64
"""Commas from which a stretch without strings may be a list of token ids."""
_OPEN = (b",", b"{", b"[")
_OF_IDS = b"0123456789 ,\t\r\n:[]}"
_NAME_BYTES = 16
_REST_OF_STRING = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)


def most_values_of(path: str, most: int) -> int:
    """Return how many values a body may have that is sent to a path."""
    return most // 2 if path in _COSTLY else most


_AT_FIRST = 4
"""A body is counted exactly from this part of the limit on: most bodies never are, and what came
until then is counted in one turn of the event loop, some 5 us a value."""


class TooManyValues(ValueError):
    """The body holds more than it may."""


@dataclass(slots=True)
class JsonBounds:
    """Counts one body's values."""

    most_values: int = MOST_VALUES
    most_ids: int = MOST_IDS
    whole: bool = False
    """Each part that is fed is a text of JSON by itself."""
    _seen: list[bytes] | None = field(default_factory=list)
    """What has come, as long as it is far from the limit whatever is in strings."""
    _atmost: int = 0
    _values: int = 0
    _ids: int = 0
    _strings: int = 0
    _in_string: bool = False
    _escaped: bool = False
    """The last byte so far was a backslash in a string."""
    _name: bytes = b""
    """The beginning of the last string."""

    def feed(self, data: bytes) -> None:
        """Take in bytes of the body, cut anywhere.

        Raises:
            TooManyValues: it has too many.
        """
        if self._seen is not None:
            self._atmost += sum(map(data.count, _OPEN))
            self._seen.append(data)
            if self._atmost <= self.most_values // _AT_FIRST:
                return
            seen, self._seen = self._seen, None
        else:
            seen = [data]
        for part in seen if self.whole else [b"".join(seen)]:
            self._count(part)
            if self.whole:
                self._in_string = self._escaped = False

    def add(self, values: int) -> None:
        """Count values that are elsewhere.

        Raises:
            TooManyValues: there are too many with them.
        """
        self._atmost += values
        self._values += values
        if self._values > self.most_values:
            raise self._too_many_values()

    def add_ids(self, ids: int) -> None:
        """Count token ids.

        Raises:
            TooManyValues: there are too many with them.
        """
        self._ids += ids
        if self._ids > self.most_ids:
            raise TooManyValues(f"the request has more than {self.most_ids} token ids")

    def _count(self, data: bytes) -> None:
        at, end = 0, len(data)
        while at < end:
            if self._in_string:
                at = self._string(data, at)
                continue
            quote = data.find(b'"', at)
            until = end if quote < 0 else quote
            self._between(data[at:until])
            if quote < 0:
                return
            self._in_string = True
            self._name = data[quote + 1 : quote + 1 + _NAME_BYTES].partition(b'"')[0]
            self._strings += 1
            # Each value is behind a comma or a bracket, and has one name at most.
            if self._strings > 2 * self.most_values + 2:
                raise self._too_many_values()
            at = quote + 1

    def _string(self, data: bytes, at: int) -> int:
        """Return where the string ends, or the data."""
        if self._escaped:
            self._escaped = False
            at += 1
        match = _REST_OF_STRING.match(data, at)
        assert match is not None
        at = match.end()
        if at < len(data):
            if data[at] == ord('"'):
                self._in_string = False
            else:  # a backslash, and nothing behind it yet
                self._escaped = True
            at += 1
        return at

    def _between(self, data: bytes) -> None:
        """Count what is outside of strings."""
        count = sum(map(data.count, _OPEN))
        if count > _LONG and self._name in _IDS and not data.translate(None, _OF_IDS):
            self.add_ids(count)
        else:
            self.add(count)

    def _too_many_values(self) -> TooManyValues:
        return TooManyValues(
            f"the request has more than {self.most_values} values, objects, lists and commas "
            "(security.max_body_values; half of it for /v1/responses)"
        )
