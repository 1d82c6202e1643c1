"""Records of requests, stored as JSON lines."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from serving.client.errors import InvalidRequest

Phase = Literal["warmup", "measure"]


@dataclass(frozen=True, slots=True)
class Record:
    """Measurements of one request. Times are seconds since the run began."""

    index: int
    stage: int
    """Number of the stage."""
    session: int
    turn: int
    phase: Phase
    intended: float
    """When the request was due. Latencies are measured from this time: otherwise, a late generator
    or a server that accepts requests slowly would appear fast (coordinated omission)."""
    sent: float
    first: float | None
    """Arrival time of the first chunk of the answer; None if no chunk arrived."""
    end: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    gaps_ms: tuple[float, ...]
    """Milliseconds between chunks of the answer; a chunk can contain several tokens."""
    error: str = ""
    """Kind of failure (see ``serving.client.errors.ClientError``), or "cancelled"; empty if it
    succeeded."""
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the answer is complete."""
        return not self.error

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds from when the request was due."""
        return None if self.first is None else self.first - self.intended

    @property
    def latency(self) -> float:
        """Time to the end of the answer, seconds from when the request was due."""
        return self.end - self.intended

    @property
    def itl(self) -> float | None:
        """Mean time between tokens (TPOT), seconds; None with fewer than two tokens.

        Counts tokens, not chunks, to be independent of how a server groups them.
        """
        if self.first is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.end - self.first) / (self.output_tokens - 1)


def to_line(record: Record) -> str:
    """Return a record as a line of JSON, with times rounded to microseconds."""
    content = asdict(record)
    for name in ("intended", "sent", "first", "end"):
        if content[name] is not None:
            content[name] = round(content[name], 6)
    return json.dumps(content, separators=(",", ":"))


def from_line(line: str) -> Record:
    """Parse a line that ``to_line`` wrote.

    Raises:
        InvalidRequest: The line is not a record.
    """
    try:
        content: dict[str, Any] = json.loads(line)
        content["gaps_ms"] = tuple(content["gaps_ms"])
        return Record(**{field.name: content[field.name] for field in fields(Record)})
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"not a moe-serving load record: {line[:80]}") from error


def read_records(files: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of all files.

    Raises:
        InvalidRequest: A file cannot be read, or does not contain records.
    """
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if line.strip():
                        yield from_line(line)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot read records from {file}: {error}") from error


def write_parquet(records: Iterable[Record], file: Path) -> bool:
    """Write records as Parquet if pyarrow is installed; return whether it is."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return False
    table = pa.Table.from_pylist([asdict(record) for record in records])
    parquet.write_table(table, file)
    return True
