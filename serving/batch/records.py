"""Records of files, batches and answers, as stored in the database."""

import secrets
from dataclasses import dataclass
from enum import StrEnum

BATCH_PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"


class Status(StrEnum):
    """Status of a batch, with OpenAI's names."""

    VALIDATING = "validating"
    """The lines of the input file are being read."""
    FAILED = "failed"
    """The input file has no line that could be run."""
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    """The results are being written."""
    COMPLETED = "completed"
    EXPIRED = "expired"
    """The completion window has passed; the results are those until then."""
    CANCELLING = "cancelling"
    """Cancelled; the results until then are being written."""
    CANCELLED = "cancelled"


ENDED = (Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A complete file."""

    file_id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    """Unix seconds."""
    expires_at: int | None
    """Unix seconds, or None if it never expires."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An invalid line, or the reason for which a batch failed; OpenAI's batch error."""

    code: str
    message: str
    line: int | None = None
    """Number of the line in the input file, from 1."""
    param: str | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A request to create a batch."""

    tenant: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    window: int
    """``completion_window`` in seconds."""
    metadata_json: str
    results_lifetime: int | None
    """Seconds after which the results are deleted. None means ``batch.retention``."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch; times are in Unix seconds, None until the batch gets there."""

    batch_id: str
    tenant: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata_json: str
    results_lifetime: int | None
    status: Status
    outcome: Status | None
    """The status after finalizing or cancelling."""
    owner: str | None
    errors_json: str | None
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Claim:
    """A line that this process runs."""

    batch_id: str
    line: int
    start: int
    """Offset in the input file, bytes."""
    length: int
    """Length without the line break, bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a line."""

    batch_id: str
    line: int
    completed: bool
    """Whether the response has status 200."""
    content: bytes
    """A line of the results without its id, from ``result_lines.content_of``."""


def new_id(prefix: str, now: float) -> str:
    """Return a new id; ids of later milliseconds are greater.

    Args:
        prefix: For instance ``file``.
        now: Unix time, seconds.
    """
    return f"{prefix}-{int(now * 1000):012x}{secrets.token_hex(10)}"
