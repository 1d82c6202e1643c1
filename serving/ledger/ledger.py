"""The ledger of a router: accepts records on the request path without waiting for the database."""

import asyncio
from pathlib import Path

import structlog

from serving.clock import Clock
from serving.ledger.database import LedgerDatabase
from serving.ledger.records import Record, RecordIds, to_line
from serving.ledger.spool import Spool
from serving.ledger.writer import LedgerWriter
from serving.settings import LedgerSettings
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Ledger:
    """The spool, writer and database of one router."""

    def __init__(self, settings: LedgerSettings, clock: Clock, tenant_labels: int = 0) -> None:
        """Lock the ledger's directory; the writer connects to the database later.

        Args:
            settings: Settings of the ledger; ``directory`` must be set.
            clock: The router's clock.
            tenant_labels: Maximum number of tenants with price metrics.

        Raises:
            SettingsError: The directory cannot be used, or the database settings are invalid.
        """
        assert settings.directory is not None
        self._settings = settings
        self._clock = clock
        self._spooled = True
        self.database = LedgerDatabase(settings, tenant_labels)
        metrics.GPU_HOUR_PRICE.set(float(settings.gpu_hour_price or 0))
        folder = Path(settings.directory) / "spool"
        self._spool = Spool(folder, settings.max_spool_bytes, clock.monotonic())
        self._writer = LedgerWriter(
            self._spool,
            self.database,
            interval=settings.flush_interval,
            monotonic=clock.monotonic,
        )
        self.record_ids = RecordIds()

    def start(self) -> None:
        """Start inserting records, beginning with those of an earlier process."""
        self._writer.start()

    def append(self, record: Record) -> None:
        """Write a record, which then survives the end of this process.

        Takes about 20 µs. While the spool cannot be written, records wait in memory for the
        database; if there are too many, further ones are dropped and counted. Never raises an
        exception.
        """
        try:
            self._spool.append(to_line(record), self._clock.monotonic())
        except OSError as error:
            kept = self._writer.keep(record)
            if not kept:
                metrics.LEDGER_DROPPED.inc()
            if self._spooled:
                log.error("the ledger's spool cannot be written", reason=str(error))  # noqa: TRY400
            self._spooled = False
        else:
            if not self._spooled:
                log.info("the ledger's spool can be written again")
            self._spooled = True

    async def stop(self) -> None:
        """Insert the remaining records, for at most ``ledger.database_timeout`` seconds."""
        await asyncio.to_thread(self._writer.stop, self._settings.database_timeout)
        self._spool.close()
