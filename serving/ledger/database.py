"""The ledger's database: SQLite in the ledger's directory, or PostgreSQL shared by routers.

Inserts are idempotent: existing records are skipped.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from serving.errors import SettingsError
from serving.ledger.budget import UNIT
from serving.ledger.inserts import Inserts
from serving.ledger.records import Record
from serving.ledger.tariff import load_tariff
from serving.settings import LedgerSettings
from serving.sql import WRITES, postgresql_engine, sqlite_engine
from serving.telemetry.tenants import TenantPrices

DATABASE_ERRORS = (SQLAlchemyError, OSError)
"""Exceptions raised while the database is unreachable or fails."""
ROW_ERRORS = (DataError, IntegrityError, OverflowError)
"""Exceptions caused by a row, which would occur again for the same row."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6D6F65  # "moe"
"""Key of the PostgreSQL advisory lock that migrations hold."""


class LedgerDatabase:
    """Connections to the database; safe to use from several threads."""

    def __init__(self, settings: LedgerSettings, tenant_labels: int = 0) -> None:
        """Prepare connections, which are opened on demand.

        Args:
            settings: All settings of the ledger.
            tenant_labels: Maximum number of tenants with price metrics.

        Raises:
            SettingsError: The URL is invalid, the password file cannot be read, or the tariff
                cannot be used.
        """
        self._settings = settings
        self.tariff = load_tariff(settings.tariff_file)
        self._prices = TenantPrices(tenant_labels)
        self._engine = _engine(settings)
        self._insert = Inserts(self._engine.dialect.name, self.tariff)

    def migrate(self) -> None:
        """Create the schema, or migrate it from an earlier version.

        Raises:
            SettingsError: The schema has a later version.
            DATABASE_ERRORS: The database is unreachable or fails.
        """
        from alembic import command

        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                # Routers that start at the same time migrate one after another.
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            if _is_current(connection):
                return
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check(self) -> None:
        """Check that the schema has this version, without changing it.

        Raises:
            SettingsError: The schema is missing or has another version.
            DATABASE_ERRORS: The database is unreachable or fails.
        """
        if self._settings.database_url is None and not _sqlite_file(self._settings).exists():
            raise SettingsError(
                f"there is no ledger in {self._settings.directory}: ledger.directory must be that "
                "of a router, which creates it"
            )
        with self.connect() as connection:
            if not _is_current(connection):
                raise SettingsError(
                    "the ledger's database has no schema, or one of an earlier version: start a "
                    "router of this version with the same ledger settings, which creates it"
                )

    def insert(self, records: Sequence[Record]) -> None:
        """Insert records in one transaction; existing ones are skipped.

        The price of the inserted requests counts as spent and replaces their reservations.

        Raises:
            ROW_ERRORS: The database rejects a record; none is inserted.
            DATABASE_ERRORS: The database is unreachable or fails; none is inserted.
        """
        with self.write() as connection:
            spent = self._insert(connection, records)
        for (tenant, _key, _day), amount in spent.items():
            self._prices.count(tenant, amount / UNIT)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that changes the database, and commit it at the end."""
        with self._engine.connect().execution_options(**WRITES) as connection, connection.begin():
            yield connection

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open a connection for queries."""
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def location(settings: LedgerSettings) -> str:
    """Return the database's address without its password, for messages."""
    if settings.database_url is None:
        return str(_sqlite_file(settings))
    return make_url(settings.database_url).render_as_string(hide_password=True)


def _sqlite_file(settings: LedgerSettings) -> Path:
    assert settings.directory is not None
    return Path(settings.directory) / "ledger.sqlite"


def _engine(settings: LedgerSettings) -> Engine:
    if settings.database_url is None:
        return sqlite_engine(_sqlite_file(settings), settings.database_timeout)
    return postgresql_engine(
        "ledger", settings.database_url, settings.database_password_file, settings.database_timeout
    )


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _is_current(connection: Connection) -> bool:
    """Return whether the schema has this version.

    Raises:
        SettingsError: The schema has a later version.
    """
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    found = MigrationContext.configure(
        connection, opts={"version_table": "ledger_schema"}
    ).get_current_revision()
    scripts = ScriptDirectory.from_config(_alembic_config())
    known = [revision.revision for revision in scripts.walk_revisions()]
    if found is not None and found not in known:
        raise SettingsError(
            f"the ledger's database has schema {found}, this version knows up to "
            f"{known[0]}: run the version of moe-serving that wrote it"
        )
    return found == known[0]
