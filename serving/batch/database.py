"""The database of files and batches: SQLite in the folder, or PostgreSQL that routers share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from serving.batch.schema import METADATA, SCHEMA, VERSION
from serving.errors import NotReady, SettingsError
from serving.settings import BatchSettings
from serving.sql import postgresql_engine, sqlite_engine

DATABASE_ERRORS = (SQLAlchemyError, OSError)
"""Exceptions raised while the database is unreachable or fails."""

_LOCK = 0x6D6F6562  # "moeb"
"""Number of PostgreSQL's advisory lock that creates the schema."""
_TENANT_LOCK = 0x6D6F6566  # "moef"
_SQLITE_TIMEOUT = 30.0


class BatchDatabase:
    """Connections to the database; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        """Use an engine; ``create`` creates the tables."""
        self._engine = engine
        # SQLite has one writer at a time; waiting here is fair and never fails.
        self._writing = threading.Lock()
        self.shared = engine.dialect.name == "postgresql"
        """Whether other routers may use the same database."""

    @classmethod
    def of(cls, settings: BatchSettings) -> "BatchDatabase":
        """Return the database of the settings; a SQLite file's folder must exist.

        Raises:
            SettingsError: The URL is invalid, or the password file cannot be read.
        """
        if settings.database_url is None:
            assert settings.directory is not None
            file = Path(settings.directory) / "batches.sqlite"
            return cls(sqlite_engine(file, _SQLITE_TIMEOUT))
        return cls(
            postgresql_engine(
                "batch",
                settings.database_url,
                settings.database_password_file,
                settings.database_timeout,
            )
        )

    def create(self) -> None:
        """Create the tables if they do not exist.

        Raises:
            SettingsError: A later version of this program created them.
            DATABASE_ERRORS: The database is unreachable or fails.
        """
        with self._engine.begin() as connection:
            if self.shared:
                # Routers that start together create the tables one after the other.
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            METADATA.create_all(connection)
            found = connection.execute(SCHEMA.select()).scalar()
            if found is None:
                connection.execute(SCHEMA.insert().values(version=VERSION))
            elif found > VERSION:
                raise SettingsError(
                    f"the batches' database has schema {found}, this version knows {VERSION}: run "
                    "the version of moe-serving that created it"
                )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction for changes.

        Raises:
            NotReady: The database is unreachable or fails.
        """
        with self._answering():
            if self.shared:
                with self._engine.begin() as connection:
                    yield connection
            else:
                with self._writing, self._engine.begin() as connection:
                    yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for queries.

        Raises:
            NotReady: The database is unreachable or fails.
        """
        with self._answering(), self._engine.connect() as connection:
            yield connection

    def lock_tenant(self, connection: Connection, tenant: str) -> None:
        """Let transactions that check a limit of the same tenant follow each other."""
        if self.shared:
            lock = "SELECT pg_advisory_xact_lock(:number, hashtext(:tenant))"
            connection.execute(text(lock), {"number": _TENANT_LOCK, "tenant": tenant})

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise NotReady(
                f"the batches' database does not answer ({reason}); try again later"
            ) from error
