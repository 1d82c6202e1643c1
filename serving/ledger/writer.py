"""The thread that moves records from the spool to the database.

Requests never wait for the database. While it is unreachable, segments stay in the spool and the
thread retries with exponential backoff.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from serving.errors import SettingsError
from serving.ledger.database import DATABASE_ERRORS, ROW_ERRORS
from serving.ledger.records import Record, from_line, to_line
from serving.ledger.spool import Segment, Spool
from serving.telemetry import metrics

BATCH = 1000
"""Maximum number of records in a transaction."""
BACKLOG = 10_000
"""Maximum number of records kept in memory while the spool cannot be written."""
MAX_PAUSE = 30.0
"""Maximum time between attempts to reach the database, seconds."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Database(Protocol):
    """The part of ``serving.ledger.database.LedgerDatabase`` that the writer uses."""

    def migrate(self) -> None:
        """Create the schema, or migrate it to this version."""
        ...

    def insert(self, records: Sequence[Record]) -> None:
        """Insert records in one transaction, skipping existing ones."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class LedgerWriter:
    """Inserts the records of the spool, and those that the spool could not store."""

    def __init__(
        self,
        spool: Spool,
        database: Database,
        *,
        interval: float,
        monotonic: Callable[[], float],
    ) -> None:
        """Create the writer; ``start`` starts its thread.

        Args:
            spool: Source of the records.
            database: Destination.
            interval: Time between two inserts, seconds.
            monotonic: Returns the monotonic time, seconds.
        """
        self._spool = spool
        self._database = database
        self._interval = interval
        self._monotonic = monotonic
        self._backlog: deque[Record] = deque()
        self._backlog_guard = threading.Lock()
        self._migrated = False
        self._failures = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Insert the remaining records and end the thread; the rest stays in the spool.

        Does nothing if the thread was not started.

        Args:
            timeout: Maximum wait, seconds.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def keep(self, record: Record) -> bool:
        """Keep a record in memory until it is inserted; return False if there are too many."""
        with self._backlog_guard:
            if len(self._backlog) >= BACKLOG:
                return False
            self._backlog.append(record)
            return True

    def flush(self) -> None:
        """Insert all records.

        Raises:
            SettingsError: The schema has a later version.
            DATABASE_ERRORS: The database is unreachable or fails, or a file cannot be removed.
        """
        try:
            if not self._migrated:
                self._database.migrate()
                self._migrated = True
            for segment in self._spool.seal():
                self._insert_segment(segment)
            self._insert_backlog()
        except DATABASE_ERRORS:
            # The database may have been replaced by an empty one.
            self._migrated = False
            raise
        finally:
            self._report()

    def _insert_segment(self, segment: Segment) -> None:
        records: list[Record] = []
        bad: list[bytes] = []
        try:
            lines = segment.lines()
        except FileNotFoundError:
            log.error(  # noqa: TRY400  the path is enough
                "a segment of the ledger's spool was removed; its records are lost",
                segment=str(segment.path),
                bytes=segment.size,
            )
            self._spool.remove(segment)
            return
        for line in lines:
            try:
                records.append(from_line(line))
            except ValueError:
                bad.append(line)
        for first in range(0, len(records), BATCH):
            bad += self._insert(records[first : first + BATCH])
        if bad:
            log.error(
                "ledger records cannot be inserted; they are kept in a .bad file",
                segment=str(segment.path),
                records=len(bad),
            )
            self._spool.keep_bad(segment, bad)
            metrics.LEDGER_DROPPED.inc(len(bad))
        self._spool.remove(segment)

    def _insert(self, records: list[Record]) -> list[bytes]:
        """Insert records; return the ones that the database rejects, as lines."""
        try:
            self._database.insert(records)
        except ROW_ERRORS:
            if len(records) == 1:
                return [to_line(records[0]).rstrip()]
            half = len(records) // 2
            return self._insert(records[:half]) + self._insert(records[half:])
        metrics.LEDGER_WRITTEN.inc(len(records))
        return []

    def _insert_backlog(self) -> None:
        while True:
            with self._backlog_guard:
                records = list(self._backlog)[:BATCH]
            if not records:
                return
            if bad := self._insert(records):
                log.error("ledger records cannot be inserted", records=len(bad))
                metrics.LEDGER_DROPPED.inc(len(bad))
            with self._backlog_guard:
                for _ in records:
                    self._backlog.popleft()

    def _report(self) -> None:
        since = self._spool.oldest_since
        metrics.LEDGER_LAG.set(0.0 if since is None else self._monotonic() - since)
        metrics.LEDGER_SPOOL_BYTES.set(self._spool.size)
        metrics.LEDGER_BACKLOG.set(len(self._backlog))

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            self._attempt()
        self._attempt()
        self._database.close()

    def _pause(self) -> float:
        return min(self._interval * 2.0**self._failures, max(MAX_PAUSE, self._interval))

    def _attempt(self) -> None:
        try:
            self.flush()
        except (SettingsError, *DATABASE_ERRORS) as error:
            metrics.LEDGER_FAILURES.inc()
            if not self._failures:
                log.error(  # noqa: TRY400  the reason is enough
                    "the ledger's database fails; records wait in the spool",
                    reason=_first_line(error),
                )
            self._failures = min(self._failures + 1, 16)
            return
        except Exception:
            # The thread must not end: without it, the spool would only grow.
            metrics.LEDGER_FAILURES.inc()
            log.exception("the ledger's writer failed")
            self._failures = min(self._failures + 1, 16)
            return
        if self._failures:
            log.info("the ledger's database works again")
        self._failures = 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
