"""How many values a message of gRPC may hold: as many as a body of REST, for the same reason."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.edge.rest.json_bounds import JsonBounds, TooManyValues
from serving.errors import InvalidRequest

_IDS = frozenset({"ids", "token_ids"})
"""Fields with tokens of a prompt."""
_JSON = "_json"
"""How the names of fields end that hold JSON."""


def bound(message: Message, most_values: int) -> None:
    """See that a request can be looked at in one turn of the event loop.

    Raises:
        InvalidRequest: it holds too many values.
    """
    if message.ByteSize() < most_values:  # each takes a byte at least
        return
    try:
        _count(message, JsonBounds(most_values, whole=True))
    except TooManyValues as error:
        raise InvalidRequest(str(error)) from error


def _count(message: Message, bounds: JsonBounds) -> None:
    for field, value in message.ListFields():
        if field.is_repeated:
            _count_list(field, value, bounds)
            continue
        bounds.add(1)
        if field.message_type is not None:
            _count(value, bounds)
        elif field.name.endswith(_JSON):
            bounds.feed(value.encode())


def _count_list(field: FieldDescriptor, value: object, bounds: JsonBounds) -> None:
    size = len(value)  # type: ignore[arg-type]
    if field.name in _IDS:
        bounds.add_ids(size)
        return
    bounds.add(size)
    kind = field.message_type
    if kind is not None and not kind.GetOptions().map_entry:
        for each in value:  # type: ignore[attr-defined]
            _count(each, bounds)
