"""Rows of batches, and the transitions of their status. All functions block.

    validating -> in_progress -> finalizing -> completed or expired
        |              |
        v              v
      failed       cancelling -> cancelled

A transition names the status that it starts from, so that of two processes only one makes it.
"""

from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select, update

from serving.batch import owners
from serving.batch.database import BatchDatabase
from serving.batch.records import ENDED, Batch, NewBatch, Problem, Status, new_id
from serving.batch.schema import BATCHES, FILES
from serving.clock import Clock
from serving.errors import Conflict, Overloaded, ResourceNotFound
from serving.settings import BatchSettings

_FIELDS = [BATCHES.c[name] for name in Batch.__dataclass_fields__]
_FULL_RETRY = 60.0
_RUNNING = (Status.VALIDATING, Status.IN_PROGRESS)
_ENDED_AT = {
    Status.COMPLETED: "completed_at",
    Status.EXPIRED: "expired_at",
    Status.CANCELLED: "cancelled_at",
}


class BatchTable:
    """Batches of all tenants."""

    def __init__(
        self, database: BatchDatabase, settings: BatchSettings, clock: Clock, owner: str
    ) -> None:
        """Use a database; ``owner`` names this process."""
        self._database = database
        self._settings = settings
        self._clock = clock
        self._owner = owner

    # -- for tenants --------------------------------------------------------------------

    def create(self, new: NewBatch) -> Batch:
        """Create a batch; a router validates and runs it.

        Raises:
            ResourceNotFound: The tenant has no such input file.
            Overloaded: The tenant has too many batches.
        """
        now = self._clock.time()
        batch_id = new_id("batch", now)
        with self._database.write() as connection:
            self._database.lock_tenant(connection, new.tenant)
            file = connection.execute(
                select(FILES.c.file_id)
                .where(
                    FILES.c.file_id == new.input_file_id,
                    FILES.c.tenant == new.tenant,
                    FILES.c.owner.is_(None),
                )
                .with_for_update()  # it cannot be deleted until the batch exists
            ).first()
            if file is None:
                raise ResourceNotFound(f"there is no file {new.input_file_id!r}")
            running = connection.execute(
                select(func.count())
                .select_from(BATCHES)
                .where(BATCHES.c.tenant == new.tenant, BATCHES.c.status.not_in(ENDED))
            ).scalar_one()
            most = self._settings.tenant_batches
            if running >= most:
                raise Overloaded(
                    f"{running} of your batches have not ended, the limit is {most} "
                    "(batch.tenant_batches): wait for one or cancel one",
                    _FULL_RETRY,
                )
            connection.execute(
                BATCHES.insert().values(
                    batch_id=batch_id,
                    tenant=new.tenant,
                    key_id=new.key_id,
                    endpoint=new.endpoint,
                    input_file_id=new.input_file_id,
                    completion_window=new.completion_window,
                    metadata_json=new.metadata_json,
                    results_lifetime=new.results_lifetime,
                    status=Status.VALIDATING,
                    total=0,
                    completed=0,
                    failed=0,
                    created_at=int(now),
                    expires_at=int(now) + new.window,
                )
            )
        return self.get(new.tenant, batch_id)

    def get(self, tenant: str, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            ResourceNotFound: The tenant has no such batch.
        """
        query = select(*_FIELDS).where(BATCHES.c.batch_id == batch_id, BATCHES.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise ResourceNotFound(f"there is no batch {batch_id!r}")
        return _batch(row)

    def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Return batches, newest first, and whether there are more.

        Args:
            tenant: The tenant.
            after: Id of the last batch of the previous page. None requests the first page.
            limit: Maximum number of batches.
        """
        query = select(*_FIELDS).where(BATCHES.c.tenant == tenant)
        if after is not None:
            query = query.where(BATCHES.c.batch_id < after)
        query = query.order_by(BATCHES.c.batch_id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            rows = [_batch(row) for row in connection.execute(query)]
        return rows[:limit], len(rows) > limit

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Cancel a batch; a router then writes the results that it has.

        Raises:
            ResourceNotFound: The tenant has no such batch.
            Conflict: The batch has ended, or its results are being written.
        """
        batch = self.get(tenant, batch_id)
        with self._database.write() as connection:
            changed = self._move(
                connection,
                batch_id,
                _RUNNING,
                status=Status.CANCELLING,
                outcome=Status.CANCELLED,
                cancelling_at=self._now(),
                owner=None,
            )
        if not changed and batch.status is not Status.CANCELLING:
            raise Conflict(f"{batch_id} is {self.get(tenant, batch_id).status}")
        return self.get(tenant, batch_id)

    # -- for routers --------------------------------------------------------------------

    def unfinished(self) -> list[Batch]:
        """Return all batches that have not ended, oldest first."""
        query = select(*_FIELDS).where(BATCHES.c.status.not_in(ENDED)).order_by(BATCHES.c.batch_id)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def own(self, batch_id: str, status: Status) -> bool:
        """Take ownership of a batch in ``status``, to validate it or to write its results.

        Returns:
            False if another process with a lease owns it, or its status has changed.
        """
        now = self._clock.time()
        with self._database.write() as connection:
            changed = connection.execute(
                update(BATCHES)
                .where(
                    BATCHES.c.batch_id == batch_id,
                    BATCHES.c.status == status,
                    owners.available(BATCHES.c.owner, now) | (BATCHES.c.owner == self._owner),
                )
                .values(owner=self._owner)
            )
        return bool(changed.rowcount)

    def validated(self, batch_id: str, total: int, failed: int, problems: list[Problem]) -> None:
        """Start to run a batch that this process has validated; its lines are in the database.

        Args:
            batch_id: The batch.
            total: Number of lines, including invalid ones.
            failed: Number of invalid lines.
            problems: The first invalid lines.
        """
        now = self._now()
        with self._database.write() as connection:
            self._move(
                connection,
                batch_id,
                (Status.VALIDATING,),
                owned=True,
                status=Status.IN_PROGRESS,
                in_progress_at=now,
                total=total,
                failed=failed,
                errors_json=_errors(problems),
                owner=None,
            )

    def fail(self, batch_id: str, problems: list[Problem]) -> None:
        """End a batch that this process validates and that has no line to run."""
        with self._database.write() as connection:
            self._move(
                connection,
                batch_id,
                (Status.VALIDATING,),
                owned=True,
                status=Status.FAILED,
                failed_at=self._now(),
                errors_json=_errors(problems),
                owner=None,
            )

    def close(self, batch_id: str, outcome: Status) -> bool:
        """Stop running a batch: its results can be written."""
        with self._database.write() as connection:
            return self._move(
                connection,
                batch_id,
                (Status.IN_PROGRESS,),
                status=Status.FINALIZING,
                outcome=outcome,
                finalizing_at=self._now(),
                owner=None,
            )

    def end(self, batch: Batch, output_file_id: str | None, error_file_id: str | None) -> bool:
        """Record the results of a batch, which end it.

        Returns:
            False if another process has already done so.
        """
        outcome = batch.outcome or Status.COMPLETED
        with self._database.write() as connection:
            changed = connection.execute(
                update(BATCHES)
                .where(
                    BATCHES.c.batch_id == batch.batch_id,
                    BATCHES.c.status == batch.status,
                    BATCHES.c.owner == self._owner,
                )
                .values(
                    {
                        "status": outcome,
                        _ENDED_AT[outcome]: self._now(),
                        "output_file_id": output_file_id,
                        "error_file_id": error_file_id,
                        "owner": None,
                    }
                )
            )
            return bool(changed.rowcount)

    def sweep(self) -> None:
        """Remove batches that ended longer ago than ``batch.retention``."""
        before = self._now() - int(self._settings.retention)
        with self._database.write() as connection:
            connection.execute(
                delete(BATCHES).where(
                    BATCHES.c.status.in_(ENDED),
                    BATCHES.c.expires_at < before,
                    BATCHES.c.created_at < before,
                )
            )

    def _move(
        self,
        connection: Connection,
        batch_id: str,
        origins: tuple[Status, ...],
        *,
        owned: bool = False,
        **values: Any,
    ) -> bool:
        """Change the status; with ``owned``, only if this process owns the batch."""
        statement = update(BATCHES).where(
            BATCHES.c.batch_id == batch_id, BATCHES.c.status.in_(origins)
        )
        if owned:
            statement = statement.where(BATCHES.c.owner == self._owner)
        return bool(connection.execute(statement.values(values)).rowcount)

    def _now(self) -> int:
        return int(self._clock.time())


def _batch(row: Any) -> Batch:
    values = row._asdict()
    outcome = values["outcome"]
    values["status"] = Status(values["status"])
    values["outcome"] = None if outcome is None else Status(outcome)
    return Batch(**values)


def _errors(problems: list[Problem]) -> str | None:
    return msgspec.json.encode(problems).decode() if problems else None
