"""The ledger's records: requests, and the capacity and busy time of groups.

A record is one line of JSON in the spool and one row in the database. Times are integers, so that
sums are exact. New fields need a default, because a spool may contain lines of an older version.
"""

from itertools import count
from uuid import uuid4

import msgspec

BATCH_PROTOCOL = "batch"
"""Protocol of the lines of batches, which have separate prices."""
SECOND = 1_000_000
"""Number of microseconds in a second."""


def microseconds(seconds: float) -> int:
    """Convert seconds to whole microseconds."""
    return round(seconds * SECOND)


class RequestUsage(msgspec.Struct, frozen=True, tag="request", tag_field="kind"):
    """A request that reached a rank, over either protocol and with any outcome."""

    record_id: str
    """Unique across routers, so that a record inserted twice counts once."""
    finished_us: int
    """End time of the request, microseconds since the Unix epoch."""
    request_id: str
    """The client's request id, which need not be unique."""
    tenant: str
    key_id: str | None
    """Id of the API key in the key file, never the key. None if no key is required."""
    model: str
    priority: str
    protocol: str
    """"rest", "grpc", or ``BATCH_PROTOCOL`` of a batch's line."""
    route: str
    """Route or RPC name."""
    outcome: str
    """"ok", "CANCELLED", or an error reason of ``serving.errors.ERROR_TABLE``."""
    prompt_tokens: int
    """Number of prompt tokens, over all prompts of the request, including cached ones."""
    cached_tokens: int
    """Number of prompt tokens that came from a KV cache."""
    output_tokens: int
    """Number of generated tokens received from ranks, over all choices."""
    rank_us: int
    """Time that the request spent on ranks, over all prompts and resumptions, microseconds."""
    duration_us: int
    """Time from arrival to end, microseconds."""
    resumptions: int = 0
    reasoning_tokens: int | None = None
    """Number of reasoning tokens among the output tokens. None if unknown."""
    drafted_tokens: int | None = None
    """Number of tokens drafted by speculative decoding. None if not used or unknown."""
    accepted_tokens: int | None = None
    """Number of drafted tokens that were accepted."""
    ttft_us: int | None = None
    """Time from arrival to the first token, microseconds. None if no token arrived."""
    adapter: str | None = None
    """LoRA adapter; always None, because routers do not serve adapters."""
    pool: str | None = None
    """Pool of groups; always None, because a router has one."""


class GroupCapacity(msgspec.Struct, frozen=True, tag="capacity", tag_field="kind"):
    """GPUs of one group and their busy time during one slot.

    Every router records all groups; the first record of a slot and group counts.
    """

    slot: int
    """Start time of the slot, seconds since the Unix epoch; a multiple of the slot's length."""
    group_id: str
    seconds: int
    """Length of the slot, seconds."""
    gpus: int
    """Number of workers of all ranks of the group, one per GPU."""
    busy_us: int
    """Time spent in engine steps, summed over the GPUs, microseconds."""


Record = RequestUsage | GroupCapacity

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def to_line(record: Record) -> bytes:
    """Return the record as a line of JSON."""
    return _encoder.encode(record) + b"\n"


def from_line(line: bytes) -> Record:
    """Parse a line into a record.

    Raises:
        ValueError: The line is not a record.
    """
    record: Record = _decoder.decode(line)
    return record


class RecordIds:
    """Record ids of one router process: a random prefix and a number."""

    def __init__(self) -> None:
        self._prefix = uuid4().hex
        self._numbers = count()

    def __next__(self) -> str:
        """Return an unused id, at most 64 characters."""
        return f"{self._prefix}-{next(self._numbers):x}"
