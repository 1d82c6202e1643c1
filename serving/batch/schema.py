"""Tables of files, batches and their lines, for SQLite and PostgreSQL.

Times are in seconds since the Unix epoch.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

METADATA = MetaData()
VERSION = 1
"""Version of these tables."""

SCHEMA = Table("batch_schema", METADATA, Column("version", Integer, primary_key=True))

OWNERS = Table(
    "batch_owners",
    METADATA,
    # A router process; what it owns is free again when its lease has ended.
    Column("owner", String, primary_key=True),
    Column("lease_until", Float, nullable=False),
)

FILES = Table(
    "batch_files",
    METADATA,
    # Ids increase with time, so they give the order of lists.
    Column("file_id", String, primary_key=True),
    Column("tenant", String, nullable=False, index=True),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    # The process that writes the file; empty: deleted, its content may remain; null: complete.
    Column("owner", String, index=True),
)

BATCHES = Table(
    "batch_batches",
    METADATA,
    Column("batch_id", String, primary_key=True),
    Column("tenant", String, nullable=False, index=True),
    Column("key_id", String),
    Column("endpoint", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("metadata_json", Text, nullable=False),
    Column("results_lifetime", BigInteger),
    Column("status", String, nullable=False, index=True),
    # The status after "finalizing" or "cancelling".
    Column("outcome", String),
    # The process that validates or finalizes the batch.
    Column("owner", String),
    Column("errors_json", Text),
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    *(
        Column(name, BigInteger)
        for name in (
            "in_progress_at",
            "finalizing_at",
            "completed_at",
            "failed_at",
            "expired_at",
            "cancelling_at",
            "cancelled_at",
        )
    ),
)

OPEN, CLAIMED, COMPLETED, FAILED = range(4)
"""States of a line; the last two have an answer."""

LINES = Table(
    "batch_lines",
    METADATA,
    Column("batch_id", String, primary_key=True),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    # Null for a line that is not run, so that it cannot be the duplicate of another.
    Column("custom_id", String),
    # Lines with the same number begin with the same prompt.
    Column("prefix", BigInteger, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("owner", String),
    Column("answer", LargeBinary),
    Index("ix_batch_lines_custom_id", "batch_id", "custom_id", unique=True),
    Index("ix_batch_lines_state", "batch_id", "state", "prefix", "line"),
)
"""Lines of batches that have not ended; removed once the results are files."""
