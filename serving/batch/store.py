"""Files, batches and lines of one router, and the threads for their blocking calls."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from serving.batch import owners
from serving.batch.batches import BatchTable
from serving.batch.database import DATABASE_ERRORS, BatchDatabase
from serving.batch.files import FileStore, Upload
from serving.batch.lines import LineTable
from serving.batch.objects import Folder, ObjectStore
from serving.batch.records import Batch
from serving.batch.results import write_results
from serving.batch.validation import Validator
from serving.clock import Clock
from serving.errors import NotReady, ServingError, SettingsError
from serving.ledger.spool import lock_folder
from serving.settings import BatchSettings

_THREADS = 4
_LONG_THREADS = 2
"""Threads that validate and write results."""

P = ParamSpec("P")
R = TypeVar("R")


class BatchStore:
    """Storage of a router's batches."""

    def __init__(self, settings: BatchSettings, clock: Clock, *, max_line_bytes: int) -> None:
        """Lock the folder unless it is shared, and create the tables if they are missing.

        Args:
            settings: ``directory`` must be set.
            clock: The router's clock.
            max_line_bytes: Maximum length of a line, bytes.

        Raises:
            SettingsError: The folder or the database cannot be used.
        """
        assert settings.directory is not None
        folder = Path(settings.directory)
        self._settings = settings
        self._clock = clock
        self._lock = None
        if settings.database_url is None:
            self._lock = lock_folder(folder, "batch.directory")
        self._owner = secrets.token_hex(8)
        self._database = BatchDatabase.of(settings)
        self._stopping = False
        objects = _objects(settings, folder)
        self.files = FileStore(self._database, objects, settings, clock, self._owner)
        self.batches = BatchTable(self._database, settings, clock, self._owner)
        self.lines = LineTable(self._database, clock, self._owner)
        self._validator = Validator(
            self.files,
            self.batches,
            self.lines,
            max_lines=settings.max_lines,
            max_line_bytes=max_line_bytes,
            stopping=lambda: self._stopping,
        )
        self._threads = ThreadPoolExecutor(_THREADS, "batch")
        self._long_threads = ThreadPoolExecutor(_LONG_THREADS, "batch-long")
        self._aborting: set[asyncio.Task[None]] = set()
        """Ends of uploads that were cancelled while they began."""
        self._open()

    def _open(self) -> None:
        """Create the tables if they are missing, and take the lease of this process.

        Raises:
            SettingsError: The database cannot be used.
        """
        try:
            self._database.create()
            with self._database.write() as connection:
                if self._lock is not None:
                    # The folder is locked, so no other process owns anything in it.
                    owners.release_all(connection)
                owners.renew(connection, self._owner, self._clock.time(), self._settings.lease)
        except (NotReady, *DATABASE_ERRORS) as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise SettingsError(
                f"batch.database_url: the database cannot be used at start-up: {reason}"
            ) from error

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that blocks briefly, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def run_long(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that takes seconds or minutes, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._long_threads, lambda: function(*args, **kwargs))

    async def begin_upload(self, tenant: str, *, expected: int) -> Upload:
        """Begin an upload; see ``FileStore.begin``. A cancelled call leaves no upload behind."""
        begun = asyncio.ensure_future(self.run(self.files.begin, tenant, expected=expected))
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            # The thread cannot be stopped.
            task = asyncio.create_task(self._abort_unused(begun))
            self._aborting.add(task)
            task.add_done_callback(self._aborting.discard)
            raise

    async def _abort_unused(self, begun: asyncio.Future[Upload]) -> None:
        await asyncio.wait({begun})
        if begun.exception() is None:
            with contextlib.suppress(ServingError):  # it is removed when it expires
                await self.run(self.files.abort, begun.result())

    def renew(self) -> list[Batch]:
        """Extend the lease of this process; return all batches that have not ended."""
        with self._database.write() as connection:
            owners.renew(connection, self._owner, self._clock.time(), self._settings.lease)
        return self.batches.unfinished()

    def leave(self) -> None:
        """End the lease of this process."""
        with self._database.write() as connection:
            owners.release(connection, self._owner)

    def sweep(self) -> tuple[dict[int, int], int]:
        """Remove what has expired; return the lines by state and the size of all files, bytes."""
        self.files.sweep()
        self.lines.sweep()
        self.batches.sweep()
        return self.lines.counts(), self.files.sizes()[1]

    def validate(self, batch: Batch) -> None:
        """Validate a batch that this process owns; see ``Validator.validate``."""
        self._validator.validate(batch)

    def write_results(self, batch: Batch) -> bool:
        """End a batch that this process owns; see ``results.write_results``."""
        return write_results(batch, self.batches, self.lines, self.files)

    async def close(self) -> None:
        """Wait for calls in progress, and release the folder. Safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        if self._aborting:
            await asyncio.wait(self._aborting)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._long_threads.shutdown)
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)


def _objects(settings: BatchSettings, folder: Path) -> ObjectStore:
    """Return the store of contents.

    Raises:
        SettingsError: The package that the storage needs is not installed.
    """
    if settings.storage_url is None:
        return Folder(folder / "files")
    try:
        from serving.batch.s3 import Bucket
    except ModuleNotFoundError as error:
        raise SettingsError(
            "batch.storage_url needs boto3: install the extra s3, pip install moe-serving[s3]"
        ) from error
    return Bucket(settings.storage_url, settings.storage_endpoint, settings.storage_timeout)
