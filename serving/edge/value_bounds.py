"""Limits on the number of values in a request (JSON body or proto message).

A size limit does not bound the cost of a body: four megabytes can contain two million values, whose
parsing and validation block all other requests for seconds. Values are therefore counted as the
body arrives, before it is parsed. Lists of token ids are cheap and have a separate limit.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.errors import InvalidRequest

MAX_VALUES = 16_384
"""Default limit on objects, lists, and commas outside strings; one tool use in a conversation has
about fifteen."""
_COSTLY = frozenset({"/v1/responses"})
"""Paths where values cost more, because an input item can have one of about thirty types."""
MAX_IDS = 2**18
"""Limit on integers in lists under a name in ``_IDS``; more than the context of DeepSeek-R1."""
_IDS = frozenset({b"prompt", b"tokens", b"input"})
_LONG = 64
"""Minimum number of commas between two strings for the data to be treated as token ids."""
_OPEN = (b",", b"{", b"[")
_OF_IDS = b"0123456789 ,\t\r\n:[]}"
_NAME_BYTES = 16
_STRING = re.compile(rb'("(?:[^"\\]++|\\.)*+\\?+"?+)', re.DOTALL)
"""A string, or the beginning of one cut off by the end of the data. Matches at every opening quote,
so the time is linear in the length of the data."""
_ID_FIELDS = frozenset({"ids", "token_ids"})
"""Proto fields that contain the token ids of a prompt."""
_JSON_SUFFIX = "_json"
"""Suffix of proto fields that contain JSON text."""
_MARK = b"\x01"
_END = b""
"""Marks the end of a JSON text in the data to count."""

SLICE = 2**15
"""Number of bytes counted at a time; takes 0.5 ms for a chat, at most 3 ms (for data that consists
of quotes)."""
HEAVY = 1_024
"""Number of values above which parsing and validating a body takes milliseconds."""


def max_values_of(path: str, limit: int) -> int:
    """Return the maximum number of values in the body of a request to ``path``."""
    return limit // 2 if path in _COSTLY else limit


_EXACT_COUNT_DIVISOR = 4
"""Bodies are counted exactly above the limit divided by this; most bodies stay below."""


class TooManyValues(ValueError):
    """The body contains more values than the limit."""


@dataclass(slots=True)
class JsonBounds:
    """Counts the values of one body."""

    max_values: int = MAX_VALUES
    max_ids: int = MAX_IDS
    whole: bool = False
    """Whether each part fed is a complete JSON text."""
    _pending: deque[bytes] = field(default_factory=deque)
    """Data not counted exactly yet: all of it while the body is far below the limit."""
    _upper_bound: int = 0
    """Upper bound on the number of values, ignoring strings."""
    _values: int = 0
    _ids: int = 0
    _strings: int = 0
    _in_string: bool = False
    _escaped: bool = False
    """Whether the data ends inside a string, with a backslash that escapes the next byte."""
    _name: bytes = b""
    """First bytes of the last string."""

    @property
    def heavy(self) -> bool:
        """Whether the body may contain so many values that parsing it takes milliseconds."""
        return self._upper_bound > HEAVY

    def feed(self, data: bytes) -> None:
        """Add bytes of the body, split at any position, and count them.

        Raises:
            TooManyValues: The body contains more values than the limit.
        """
        self.take(data)
        while self.uncounted:
            self.count_some()

    def take(self, data: bytes) -> None:
        """Add bytes of the body, split at any position; ``count_some`` counts them."""
        self._upper_bound += sum(map(data.count, _OPEN))
        if data:
            self._pending.append(data)
        if self.whole:
            self._pending.append(_END)

    @property
    def uncounted(self) -> bool:
        """Whether ``count_some`` must be called."""
        return self._upper_bound > self.max_values // _EXACT_COUNT_DIVISOR and bool(self._pending)

    def count_some(self) -> None:
        """Count up to ``SLICE`` of the added bytes.

        Raises:
            TooManyValues: The body contains more values than the limit.
        """
        if data := self._next_slice():
            self._count(data)

    def add(self, values: int) -> None:
        """Count ``values`` values that are not in the fed data.

        Raises:
            TooManyValues: The total exceeds the limit.
        """
        self._upper_bound += values
        self._add(values)

    def add_ids(self, ids: int) -> None:
        """Count ``ids`` token ids.

        Raises:
            TooManyValues: The total exceeds the limit.
        """
        self._ids += ids
        if self._ids > self.max_ids:
            raise TooManyValues(f"the request has more than {self.max_ids} token ids")

    def _add(self, values: int) -> None:
        self._values += values
        if self._values > self.max_values:
            raise self._too_many_values()

    def _next_slice(self) -> bytes:
        """Return the next bytes to count, all from the same JSON text."""
        pending, parts, size = self._pending, list[bytes](), 0
        while pending and size < SLICE:
            part = pending.popleft()
            if part:
                parts.append(part)
                size += len(part)
            elif parts:
                pending.appendleft(part)
                break
            else:
                self._in_string = self._escaped = False
        data = b"".join(parts)
        if len(data) > SLICE:
            pending.appendleft(data[SLICE:])
        return data[:SLICE]

    def _count(self, data: bytes) -> None:
        """Count a slice in a few calls; a call per string would take 20 times as long.

        A quote is prepended if the previous slice ended inside a string, which reopens the string.
        The appended quote either closes a string left open by this slice, or opens a string that
        contains the mark.
        """
        continues = self._in_string
        head = (b'"\\' if self._escaped else b'"') if continues else b""
        text = head + data
        escaped = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
        parts = _STRING.split(text + (b"\\" if escaped else b"") + b'"' + _MARK)
        between, strings = parts[::2], parts[1::2]
        self._in_string = between[-1] == _MARK
        self._escaped = escaped and self._in_string
        if not self._in_string:
            strings.pop()
        self._strings += len(strings) - continues
        # Each value follows a comma or a bracket and has at most one name.
        if self._strings > 2 * self.max_values + 2:
            raise self._too_many_values()
        if continues:
            strings[0] = b'"' + self._name
        values = sum(map(b"".join(between).count, _OPEN))
        if values > _LONG and max(map(len, between)) > _LONG:
            values -= self._take_ids(between, [b'"' + self._name, *strings])
        if strings:
            self._name = _name_of(strings[-1])
        self._add(values)

    def _take_ids(self, between: Sequence[bytes], strings: Sequence[bytes]) -> int:
        """Count lists of token ids, and return the number of ids in them.

        Args:
            between: The data between strings.
            strings: The string before each item of ``between``; surplus strings are ignored.
        """
        ids = 0
        for stretch, string in zip(between, strings, strict=False):
            if len(stretch) > _LONG and _name_of(string) in _IDS:
                count = sum(map(stretch.count, _OPEN))
                if count > _LONG and not stretch.translate(None, _OF_IDS):
                    ids += count
        if ids:
            self.add_ids(ids)
        return ids

    def _too_many_values(self) -> TooManyValues:
        return TooManyValues(
            f"the request has more than {self.max_values} values "
            "(security.max_body_values; /v1/responses allows half as many)"
        )


def _name_of(string: bytes) -> bytes:
    """Return the first bytes of the content of a string that starts with a quote."""
    return string[1 : 1 + _NAME_BYTES].partition(b'"')[0]


def check_message(message: Message, max_values: int) -> None:
    """Check that a request is small enough to validate in one event-loop iteration.

    Raises:
        InvalidRequest: The request contains more than ``max_values`` values.
    """
    if message.ByteSize() < max_values:  # a value takes at least one byte
        return
    try:
        _count_fields(message, JsonBounds(max_values, whole=True))
    except TooManyValues as error:
        raise InvalidRequest(str(error)) from error


def _count_fields(message: Message, bounds: JsonBounds) -> None:
    for descriptor, value in message.ListFields():
        if descriptor.is_repeated:
            _count_list(descriptor, value, bounds)
            continue
        bounds.add(1)
        if descriptor.message_type is not None:
            _count_fields(value, bounds)
        elif descriptor.name.endswith(_JSON_SUFFIX):
            bounds.feed(value.encode())


def _count_list(descriptor: FieldDescriptor, value: object, bounds: JsonBounds) -> None:
    size = len(value)  # type: ignore[arg-type]
    if descriptor.name in _ID_FIELDS:
        bounds.add_ids(size)
        return
    bounds.add(size)
    kind = descriptor.message_type
    if kind is not None and not kind.GetOptions().map_entry:
        for each in value:  # type: ignore[attr-defined]
            _count_fields(each, bounds)
