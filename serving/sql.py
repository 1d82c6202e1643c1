"""Connections to SQLite and PostgreSQL for the ledger and for batches."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError

from serving.errors import SettingsError

WRITES = {"writes": True}
"""Execution options of connections for transactions that change the database."""


def sqlite_engine(file: Path, timeout: float) -> Engine:
    """Return an engine for an SQLite file, which is created on first use.

    Args:
        file: The database file. Its folder must exist before the first use.
        timeout: Maximum wait for another writer, seconds.
    """
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": timeout})
    event.listen(engine, "connect", _prepare_sqlite)
    _watch_file(engine, file)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def postgresql_engine(group: str, url: str, password_file: str | None, timeout: float) -> Engine:
    """Return an engine for a PostgreSQL database.

    Args:
        group: Settings group of ``database_url`` and ``database_password_file``, for errors.
        url: ``postgresql://user@host/database``.
        password_file: File with the password. None means the URL's password, if any.
        timeout: Timeout for connecting and for each statement, seconds.

    Raises:
        SettingsError: The URL is invalid, or the password file cannot be read.
    """
    milliseconds = max(int(timeout * 1000), 1)
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        if password_file is not None:
            parsed = parsed.set(password=Path(password_file).read_text("utf-8").strip())
    except (OSError, ValueError, SQLAlchemyError) as error:
        raise SettingsError(
            f"{group}.database_url or {group}.database_password_file: {error}"
        ) from error
    return create_engine(
        parsed,
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=2,
        pool_timeout=timeout,
        connect_args={
            "connect_timeout": max(round(timeout), 1),
            # A server that disappears without closing the connection must not block the writer.
            "tcp_user_timeout": milliseconds,
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
        },
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's sqlite3 would commit before each statement of a migration; see _begin_sqlite.
    connection.isolation_level = None
    # Queries do not block the writer, and the writer does not block queries.
    connection.execute("PRAGMA journal_mode=WAL")
    # A segment is deleted after the commit, so the commit must survive a power failure.
    connection.execute("PRAGMA synchronous=FULL")


def _watch_file(engine: Engine, file: Path) -> None:
    """Replace connections to a file that was removed or replaced; their commits would be lost."""

    def inode() -> int | None:
        try:
            return file.stat().st_ino
        except OSError:
            return None

    def connected(_connection: Any, record: Any) -> None:
        record.info["inode"] = inode()

    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["inode"] != inode():
            raise DisconnectionError(f"{file} was removed or replaced")

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", checkout)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes fails if another one has written in between.
    writes = WRITES.items() <= connection.get_execution_options().items()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
