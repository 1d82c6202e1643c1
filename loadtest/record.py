"""What is kept of a request: one record each, as JSON lines."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from serving.errors import InvalidRequest

Phase = Literal["warmup", "measure"]


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds since the beginning of the run."""

    index: int
    stage: int
    """Which of the run's rates or numbers of streams it belongs to."""
    session: int
    turn: int
    phase: Phase
    intended: float
    """When it was due. Latencies count from here: a late generator or a server that accepts
    slowly must not look fast (coordinated omission)."""
    sent: float
    first: float | None
    """When the first piece of the answer came; none: it never did."""
    end: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    gaps_ms: tuple[float, ...]
    """Milliseconds between pieces of the answer; a piece may hold several tokens."""
    error: str = ""
    """Kind of failure (see ``target.TargetError``), or "cancelled"; empty: none."""
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was due to the first piece of the answer."""
        return None if self.first is None else self.first - self.intended

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its end."""
        return self.end - self.intended

    @property
    def itl(self) -> float | None:
        """Mean seconds from token to token after the first; none with fewer than two.

        Also called time per output token. Counted in tokens, not in pieces, so that servers
        that send several at once are not judged by how they cut.
        """
        if self.first is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.end - self.first) / (self.output_tokens - 1)


def to_line(record: Record) -> str:
    """Return the record as one line of JSON, times to the microsecond."""
    content = asdict(record)
    for name in ("intended", "sent", "first", "end"):
        if content[name] is not None:
            content[name] = round(content[name], 6)
    return json.dumps(content, separators=(",", ":"))


def from_line(line: str) -> Record:
    """Read what ``to_line`` wrote.

    Raises:
        InvalidRequest: it is something else.
    """
    try:
        content: dict[str, Any] = json.loads(line)
        content["gaps_ms"] = tuple(content["gaps_ms"])
        return Record(**{field.name: content[field.name] for field in fields(Record)})
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"not a record of loadtest: {line[:80]}") from error


def read_records(files: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of all files.

    Raises:
        InvalidRequest: a file cannot be read or holds something else.
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
    """Write them as Parquet too, where pyarrow is installed; returns whether it was."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return False
    table = pa.Table.from_pylist([asdict(record) for record in records])
    parquet.write_table(table, file)
    return True
