"""Lines of batches in the database: each is claimed by one process and answered once.

An answer changes the state of its row, and only from a state without an answer; the counts of the
batch change in the same transaction. A process that has lost its lease can still answer a line that
it has run: the first answer is kept, the second one is dropped. All functions block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, exists, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from serving.batch import owners
from serving.batch.database import BatchDatabase
from serving.batch.records import ENDED, Answer, Claim, Status
from serving.batch.schema import BATCHES, CLAIMED, COMPLETED, FAILED, LINES, OPEN
from serving.clock import Clock

_PAGE = 200
"""Rows that are read or removed at a time."""


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line of the input file, with an answer if it cannot be run."""

    line: int
    start: int
    length: int
    custom_id: str | None = None
    """None: the line is invalid."""
    prefix: int = 0
    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A line at the end of its batch."""

    line: int
    custom_id: str | None
    state: int
    answer: bytes | None


class Superseded(Exception):
    """Another process takes the batch further, or it was cancelled."""


class LineTable:
    """Lines of all batches that have not ended."""

    def __init__(self, database: BatchDatabase, clock: Clock, owner: str) -> None:
        """Use a database; ``owner`` names this process."""
        self._database = database
        self._clock = clock
        self._owner = owner

    def clear(self, batch_id: str) -> None:
        """Remove all lines of a batch in small transactions, so that other writers do not wait."""
        some = select(LINES.c.batch_id, LINES.c.line).where(LINES.c.batch_id == batch_id)
        while True:
            with self._database.write() as connection:
                removed = connection.execute(
                    delete(LINES).where(
                        tuple_(LINES.c.batch_id, LINES.c.line).in_(some.limit(_PAGE))
                    )
                )
            if not removed.rowcount:
                return

    def add(self, batch_id: str, lines: Sequence[NewLine]) -> list[NewLine]:
        """Insert lines of a batch that this process validates.

        Returns:
            Lines that were not inserted, because an earlier line has the same ``custom_id``.

        Raises:
            Superseded: The batch was cancelled, or another process validates it.
        """
        dialect = postgresql if self._database.shared else sqlite
        rows = [
            {
                "batch_id": batch_id,
                "line": each.line,
                "custom_id": each.custom_id,
                "prefix": each.prefix,
                "start": each.start,
                "length": each.length,
                "state": OPEN if each.answer is None else FAILED,
                "answer": each.answer,
            }
            for each in lines
        ]
        statement = dialect.insert(LINES).on_conflict_do_nothing(
            index_elements=[LINES.c.batch_id, LINES.c.custom_id]
        )
        with self._database.write() as connection:
            # Locks the row, so that the batch is not cancelled at the same time.
            validating = connection.execute(
                update(BATCHES)
                .where(
                    BATCHES.c.batch_id == batch_id,
                    BATCHES.c.status == Status.VALIDATING,
                    BATCHES.c.owner == self._owner,
                )
                .values(status=Status.VALIDATING)
            )
            if not validating.rowcount:
                raise Superseded(batch_id)
            connection.execute(statement, rows)
            inserted = set(
                connection.execute(
                    select(LINES.c.line).where(
                        LINES.c.batch_id == batch_id,
                        LINES.c.line.between(lines[0].line, lines[-1].line),
                    )
                ).scalars()
            )
        return [each for each in lines if each.line not in inserted]

    def claim(self, batch_id: str, most: int) -> list[Claim]:
        """Claim up to ``most`` lines, ordered by prefix."""
        some = (
            select(LINES.c.batch_id, LINES.c.line)
            .where(LINES.c.batch_id == batch_id, LINES.c.state == OPEN)
            .order_by(LINES.c.prefix, LINES.c.line)
            .limit(most)
        )
        if self._database.shared:
            some = some.with_for_update(skip_locked=True)
        statement = (
            update(LINES)
            .where(tuple_(LINES.c.batch_id, LINES.c.line).in_(some))
            .values(state=CLAIMED, owner=self._owner)
            .returning(LINES.c.line, LINES.c.start, LINES.c.length, LINES.c.prefix)
        )
        with self._database.write() as connection:
            rows = connection.execute(statement).all()
        rows = sorted(rows, key=lambda row: (row.prefix, row.line))
        return [Claim(batch_id, row.line, row.start, row.length) for row in rows]

    def answer(self, batch_id: str, answers: Sequence[Answer]) -> int:
        """Record answers; those of lines that are answered already are dropped.

        Returns:
            The number of answers recorded; 0 if the batch no longer runs.
        """
        statement = (
            update(LINES)
            .where(
                LINES.c.batch_id == bindparam("for_batch"),
                LINES.c.line == bindparam("for_line"),
                LINES.c.state.in_((OPEN, CLAIMED)),
            )
            .values(state=bindparam("new_state"), answer=bindparam("new_answer"), owner=None)
        )
        counted = {True: 0, False: 0}
        with self._database.write() as connection:
            # Locks the row, so that the results are not written at the same time.
            running = connection.execute(
                update(BATCHES)
                .where(BATCHES.c.batch_id == batch_id, BATCHES.c.status == Status.IN_PROGRESS)
                .values(status=Status.IN_PROGRESS)
            )
            if not running.rowcount:
                return 0
            for each in answers:
                changed = connection.execute(
                    statement,
                    {
                        "for_batch": batch_id,
                        "for_line": each.line,
                        "new_state": COMPLETED if each.completed else FAILED,
                        "new_answer": each.content,
                    },
                )
                counted[each.completed] += changed.rowcount
            connection.execute(
                update(BATCHES)
                .where(BATCHES.c.batch_id == batch_id)
                .values(
                    completed=BATCHES.c.completed + counted[True],
                    failed=BATCHES.c.failed + counted[False],
                )
            )
        return sum(counted.values())

    def give_back(self, claims: Sequence[Claim]) -> None:
        """Release lines of this process that were not answered."""
        statement = (
            update(LINES)
            .where(
                LINES.c.batch_id == bindparam("for_batch"),
                LINES.c.line == bindparam("for_line"),
                LINES.c.state == CLAIMED,
                LINES.c.owner == self._owner,
            )
            .values(state=OPEN, owner=None)
        )
        rows = [{"for_batch": each.batch_id, "for_line": each.line} for each in claims]
        with self._database.write() as connection:
            if rows:
                connection.execute(statement, rows)

    def owned(self, batch_id: str) -> list[Claim]:
        """Return the lines that are claimed by this process.

        A claim can have been committed although the connection failed and ``claim`` raised.
        """
        query = select(LINES.c.line, LINES.c.start, LINES.c.length).where(
            LINES.c.batch_id == batch_id, LINES.c.state == CLAIMED, LINES.c.owner == self._owner
        )
        with self._database.read() as connection:
            return [Claim(batch_id, *row) for row in connection.execute(query)]

    def sweep(self) -> None:
        """Remove the lines of batches that ended while the database failed."""
        query = select(BATCHES.c.batch_id).where(
            BATCHES.c.status.in_(ENDED), exists().where(LINES.c.batch_id == BATCHES.c.batch_id)
        )
        with self._database.read() as connection:
            ended = list(connection.execute(query).scalars())
        for batch_id in ended:
            self.clear(batch_id)

    def take_over(self, batch_id: str) -> int:
        """Release the lines of processes without a lease; return their number."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(LINES)
                .where(
                    LINES.c.batch_id == batch_id,
                    LINES.c.state == CLAIMED,
                    owners.abandoned(LINES.c.owner, self._clock.time()),
                )
                .values(state=OPEN, owner=None)
            )
        return changed.rowcount

    def counts(self) -> dict[int, int]:
        """Return the number of lines of batches that have not ended, by state."""
        query = select(LINES.c.state, func.count().label("lines")).group_by(LINES.c.state)
        with self._database.read() as connection:
            return {row.state: row.lines for row in connection.execute(query)}

    def results(self, batch_id: str) -> Iterator[Result]:
        """Yield all lines in the order of the input file."""
        last = -1
        while True:
            query = (
                select(LINES.c.line, LINES.c.custom_id, LINES.c.state, LINES.c.answer)
                .where(LINES.c.batch_id == batch_id, LINES.c.line > last)
                .order_by(LINES.c.line)
                .limit(_PAGE)
            )
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            for row in rows:
                yield Result(*row)
            last = rows[-1].line
