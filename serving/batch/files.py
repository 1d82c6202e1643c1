"""Files of tenants: their rows in the database, and their contents in the object store.

A row exists before its content is written and until after it is deleted, so that a crash never
leaves a content without a row. All functions block.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select, update

from serving.batch import owners
from serving.batch.database import BatchDatabase
from serving.batch.objects import ObjectStore, ObjectWriter, parts_of
from serving.batch.records import BATCH_PURPOSE, ENDED, StoredFile, new_id
from serving.batch.schema import BATCHES, FILES
from serving.clock import Clock
from serving.errors import (
    Conflict,
    NotReady,
    Overloaded,
    ResourceNotFound,
    ServingError,
    StorageFull,
)
from serving.settings import BatchSettings

_FIELDS = [FILES.c[name] for name in StoredFile.__dataclass_fields__]
_DELETED = ""
"""Owner of a file whose content remains to be deleted."""
_COUNTED = FILES.c.owner.is_(None) | (FILES.c.owner != _DELETED)
"""Condition that a file counts towards the limits of its tenant."""
_FULL_RETRY = 60.0


@dataclass(slots=True)
class Upload:
    """A file that is being written."""

    file_id: str
    tenant: str
    writer: ObjectWriter
    size: int = 0
    """Bytes written."""

    def write(self, data: bytes) -> None:
        """Append data.

        Raises:
            StorageFull: The storage has no room, or cannot be written.
        """
        self.writer.write(data)
        self.size += len(data)


class FileStore:
    """Files of all tenants."""

    def __init__(
        self,
        database: BatchDatabase,
        objects: ObjectStore,
        settings: BatchSettings,
        clock: Clock,
        owner: str,
    ) -> None:
        """Use a database and an object store; ``owner`` names this process."""
        self._database = database
        self._objects = objects
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._discarded: deque[str] = deque()
        """Files of this process to discard, because the database could not record it."""
        self._unused: deque[str] = deque()
        """Result files to delete unless a batch refers to them."""

    def begin(self, tenant: str, purpose: str = BATCH_PURPOSE, expected: int = 0) -> Upload:
        """Start to write a file.

        Args:
            tenant: The tenant.
            purpose: OpenAI's purpose.
            expected: Expected size, bytes; 0: unknown.

        Raises:
            Overloaded: The tenant has too many files.
            StorageFull: The tenant's files are too large, or the storage cannot be written.
        """
        now = self._clock.time()
        file_id = new_id("file", now)
        try:
            with self._database.write() as connection:
                if purpose == BATCH_PURPOSE:
                    self._check_room(connection, tenant, expected)
                connection.execute(
                    FILES.insert().values(
                        file_id=file_id,
                        tenant=tenant,
                        filename="",
                        purpose=purpose,
                        bytes=expected,
                        created_at=int(now),
                        owner=self._owner,
                    )
                )
        except NotReady:
            self._discarded.append(file_id)  # it may have been committed
            raise
        try:
            return Upload(file_id, tenant, self._objects.create(file_id))
        except BaseException:
            self._discard(file_id)
            raise

    def finish(self, upload: Upload, filename: str, lifetime: int | None = None) -> StoredFile:
        """Make a file visible.

        Args:
            upload: The upload, completely written.
            filename: The name given by the tenant.
            lifetime: Seconds until it is deleted. None: ``batch.retention``.

        Raises:
            StorageFull: The tenant's files are too large, or the storage cannot be written.
        """
        most = self._settings.retention
        seconds = int(most if lifetime is None else min(lifetime, most))
        try:
            upload.writer.commit()
            with self._database.write() as connection:
                self._check_bytes(connection, upload.tenant, upload.size, without=upload.file_id)
                connection.execute(
                    update(FILES)
                    .where(FILES.c.file_id == upload.file_id)
                    .values(
                        filename=filename,
                        bytes=upload.size,
                        expires_at=int(self._clock.time()) + seconds,
                        owner=None,
                    )
                )
        except BaseException:
            self.abort(upload)
            raise
        return self.get(upload.tenant, upload.file_id)

    def abort(self, upload: Upload) -> None:
        """Discard a file that is not finished. Never raises: ``sweep`` removes what remains."""
        upload.writer.abort()
        self._discard(upload.file_id)

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """Return a file.

        Raises:
            ResourceNotFound: The tenant has no such file.
        """
        query = select(*_FIELDS).where(
            FILES.c.file_id == file_id, FILES.c.tenant == tenant, FILES.c.owner.is_(None)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise no_file(file_id)
        return StoredFile(*row)

    def page(
        self,
        tenant: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
        purpose: str | None,
    ) -> tuple[list[StoredFile], bool]:
        """Return files in the order of their creation, and whether there are more.

        Args:
            tenant: The tenant.
            after: Id of the last file of the previous page. None requests the first page.
            limit: Maximum number of files.
            descending: Newest first.
            purpose: Only files of this purpose. None: all.
        """
        key = FILES.c.file_id
        query = select(*_FIELDS).where(FILES.c.tenant == tenant, FILES.c.owner.is_(None))
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        if after is not None:
            query = query.where(key < after if descending else key > after)
        query = query.order_by(key.desc() if descending else key).limit(limit + 1)
        with self._database.read() as connection:
            rows = [StoredFile(*row) for row in connection.execute(query)]
        return rows[:limit], len(rows) > limit

    def read(self, file_id: str, start: int, length: int) -> bytes:
        """Return part of a content; see ``ObjectStore.read``."""
        return self._objects.read(file_id, start, length)

    def parts(self, file_id: str) -> Iterator[bytes]:
        """Yield a content in parts; see ``parts_of``."""
        return parts_of(self._objects, file_id)

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            ResourceNotFound: The tenant has no such file.
            Conflict: A batch that has not ended reads it.
        """
        with self._database.write() as connection:
            # First, because it locks the row: no batch of it can be created from here on.
            deleted = connection.execute(
                update(FILES)
                .where(
                    FILES.c.file_id == file_id, FILES.c.tenant == tenant, FILES.c.owner.is_(None)
                )
                .values(owner=_DELETED)
            )
            if not deleted.rowcount:
                raise no_file(file_id)
            reader = connection.execute(
                select(BATCHES.c.batch_id).where(
                    BATCHES.c.tenant == tenant,
                    BATCHES.c.input_file_id == file_id,
                    BATCHES.c.status.not_in(ENDED),
                )
            ).first()
            if reader is not None:
                raise Conflict(f"{reader.batch_id} reads {file_id}: cancel it or wait for its end")
        self._remove(file_id)

    def sweep(self) -> int:
        """Remove files that have expired, were deleted or were abandoned by their writer.

        Returns:
            The number of files removed.
        """
        now = self._clock.time()
        reading = select(BATCHES.c.input_file_id).where(BATCHES.c.status.not_in(ENDED))
        expired = (FILES.c.expires_at <= int(now)) & FILES.c.file_id.not_in(reading)
        with self._database.write() as connection:
            discarded, unused = tuple(self._discarded), tuple(self._unused)
            for file_id in discarded:
                self._mark_deleted(connection, file_id)
            for file_id in unused:
                connection.execute(
                    update(FILES)
                    .where(
                        FILES.c.file_id == file_id,
                        ~exists().where(
                            (BATCHES.c.output_file_id == file_id)
                            | (BATCHES.c.error_file_id == file_id)
                        ),
                    )
                    .values(owner=_DELETED)
                )
            connection.execute(update(FILES).where(expired).values(owner=_DELETED))
            found = connection.execute(
                select(FILES.c.file_id).where(owners.abandoned(FILES.c.owner, now)).limit(100)
            )
            names = list(found.scalars())
        for waiting, done in ((self._discarded, discarded), (self._unused, unused)):
            for _ in done:
                waiting.popleft()
        for name in names:
            self._remove(name)
        return len(names)

    def delete_unless_used(self, file_id: str) -> None:
        """Let ``sweep`` delete a result file, unless a batch refers to it."""
        self._unused.append(file_id)

    def sizes(self) -> tuple[int, int]:
        """Return number and total size in bytes of all files."""
        query = select(func.count(), func.coalesce(func.sum(FILES.c.bytes), 0))
        with self._database.read() as connection:
            count, size = connection.execute(query.select_from(FILES)).one()
        return int(count), int(size)

    def _check_room(self, connection: Connection, tenant: str, expected: int) -> None:
        # Two uploads of a tenant at different routers must not both take the last place.
        self._database.lock_tenant(connection, tenant)
        count = connection.execute(
            select(func.count()).select_from(FILES).where(FILES.c.tenant == tenant, _COUNTED)
        ).scalar_one()
        most = self._settings.tenant_files
        if count >= most:
            raise Overloaded(
                f"you have {count} files, the limit is {most} (batch.tenant_files): delete some",
                _FULL_RETRY,
            )
        self._check_bytes(connection, tenant, expected)

    def _check_bytes(
        self, connection: Connection, tenant: str, more: int, without: str = ""
    ) -> None:
        query: Any = select(func.coalesce(func.sum(FILES.c.bytes), 0)).where(
            FILES.c.tenant == tenant, FILES.c.file_id != without, _COUNTED
        )
        size = int(connection.execute(query).scalar_one())
        most = self._settings.tenant_bytes
        if size + more > most:
            raise StorageFull(
                f"your files would have {size + more} bytes, the limit is {most} "
                "(batch.tenant_bytes): delete some"
            )

    def _discard(self, file_id: str) -> None:
        """Remove a file of this process. Never raises: what fails is repeated by ``sweep``."""
        try:
            with self._database.write() as connection:
                self._mark_deleted(connection, file_id)
        except ServingError:
            self._discarded.append(file_id)
            return
        with contextlib.suppress(ServingError):
            self._remove(file_id)

    def _mark_deleted(self, connection: Connection, file_id: str) -> None:
        connection.execute(
            update(FILES)
            .where(FILES.c.file_id == file_id, FILES.c.owner == self._owner)
            .values(owner=_DELETED)
        )

    def _remove(self, file_id: str) -> None:
        self._objects.delete(file_id)
        self._forget(file_id)

    def _forget(self, file_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(delete(FILES).where(FILES.c.file_id == file_id))


def no_file(file_id: str) -> ResourceNotFound:
    """Return the error for a file that the tenant does not have."""
    return ResourceNotFound(f"there is no file {file_id!r}")
