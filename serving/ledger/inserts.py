"""Inserts records with less CPU time than SQLAlchemy's statements (ADR 18), and adds up spending.

Existing records are skipped and not counted.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import msgspec
from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql

from serving.ledger.budget import Spending, charges
from serving.ledger.records import GroupCapacity, Record, RequestUsage
from serving.ledger.schema import CAPACITY, REQUESTS
from serving.ledger.tariff import Tariff

_SPEND = text(
    "INSERT INTO ledger_spending (tenant, key_id, day, amount) "
    "VALUES (:tenant, :key_id, :day, :amount) ON CONFLICT (tenant, key_id, day) "
    "DO UPDATE SET amount = ledger_spending.amount + excluded.amount"
)


class Inserts:
    """The statements for one kind of database."""

    def __init__(self, dialect: str, tariff: Tariff) -> None:
        """Prepare the statements.

        Args:
            dialect: "sqlite" or "postgresql".
            tariff: Prices for the spending.
        """
        self._tariff = tariff
        self._rows = _PostgresRows() if dialect == "postgresql" else _SqliteRows()

    def __call__(self, connection: Connection, records: Sequence[Record]) -> Mapping[Spending, int]:
        """Insert records in a transaction that holds SQLite's write lock.

        Returns:
            The price of the new records, in ``budget.UNIT``.
        """
        if capacity := [each for each in records if isinstance(each, GroupCapacity)]:
            self._rows.insert_capacity(connection, capacity)
        requests = {each.record_id: each for each in records if isinstance(each, RequestUsage)}
        if not requests:
            return {}
        inserted = self._rows.insert_requests(connection, list(requests.values()))
        spent = charges((requests[record_id] for record_id in inserted), self._tariff)
        rows = [
            {"tenant": tenant, "key_id": key_id, "day": day, "amount": amount}
            # Sorted, because routers that lock the same rows in different orders could deadlock.
            for (tenant, key_id, day), amount in sorted(spent.items())
        ]
        if rows:
            connection.execute(_SPEND, rows)
        self._rows.end_reservations(connection, inserted)
        return spent


class _SqliteRows:
    def __init__(self) -> None:
        self._values = {table: attrgetter(*table.columns.keys()) for table in (REQUESTS, CAPACITY)}

    def insert_requests(
        self, connection: Connection, records: Sequence[RequestUsage]
    ) -> Sequence[str]:
        """Insert records; return the ids of those that did not exist."""
        ids = [each.record_id for each in records]
        # The write lock is held, so no other process can insert them in the meantime.
        known = set(
            connection.exec_driver_sql(
                "SELECT record_id FROM ledger_requests "
                "WHERE record_id IN (SELECT value FROM json_each(?))",
                (msgspec.json.encode(ids).decode(),),
            ).scalars()
        )
        self._insert(connection, REQUESTS, records)
        return [each for each in ids if each not in known]

    def insert_capacity(self, connection: Connection, records: Sequence[GroupCapacity]) -> None:
        self._insert(connection, CAPACITY, records)

    def end_reservations(self, connection: Connection, ids: Sequence[str]) -> None:
        connection.exec_driver_sql(
            "DELETE FROM ledger_reservations WHERE record_id IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(ids).decode(),),
        )

    def _insert(self, connection: Connection, table: Table, records: Sequence[Record]) -> None:
        names = table.columns.keys()
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks}) "  # noqa: S608  names of the schema
            "ON CONFLICT DO NOTHING",
            [self._values[table](each) for each in records],
        )


class _PostgresRows:
    """Passes the records as one JSON parameter, which PostgreSQL expands into rows."""

    def __init__(self) -> None:
        self._statements = {table: self._statement(table) for table in (REQUESTS, CAPACITY)}

    def insert_requests(
        self, connection: Connection, records: Sequence[RequestUsage]
    ) -> Sequence[str]:
        """Insert records; return the ids of those that did not exist."""
        statement = text(f"{self._statements[REQUESTS]} RETURNING record_id")
        given = {"records": msgspec.json.encode(records).decode()}
        return connection.execute(statement, given).scalars().all()

    def insert_capacity(self, connection: Connection, records: Sequence[GroupCapacity]) -> None:
        given = {"records": msgspec.json.encode(records).decode()}
        connection.execute(text(self._statements[CAPACITY]), given)

    def end_reservations(self, connection: Connection, ids: Sequence[str]) -> None:
        statement = text("DELETE FROM ledger_reservations WHERE record_id = ANY(:ids)")
        connection.execute(statement, {"ids": list(ids)})

    @staticmethod
    def _statement(table: Table) -> str:
        names = ", ".join(table.columns.keys())
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        types = ", ".join(f"{each.name} {each.type.compile(dialect)}" for each in table.columns)
        return (
            f"INSERT INTO {table.name} ({names}) "  # noqa: S608  names of the schema
            f"SELECT {names} FROM json_to_recordset(CAST(:records AS json)) AS given ({types}) "
            "ON CONFLICT DO NOTHING"
        )
