"""Reads the ledger, for the router's pages and for `moe-serving usage`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

from serving.errors import NotReady
from serving.ledger.budget import Level
from serving.ledger.budget_store import read_level
from serving.ledger.database import DATABASE_ERRORS, LedgerDatabase, location
from serving.ledger.query import Query
from serving.ledger.report import Report
from serving.ledger.sums import read_report
from serving.ledger.tariff import Tariff
from serving.settings import LedgerSettings


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The database, a tariff, and the price of a GPU-hour."""

    database: LedgerDatabase
    where: str
    """The database's address without its password."""
    tariff: Tariff
    gpu_hour_price: Decimal | None

    @classmethod
    def of(cls, settings: LedgerSettings, database: LedgerDatabase) -> "LedgerView":
        """Return the view that the settings describe."""
        return cls(database, location(settings), database.tariff, settings.gpu_hour_price)

    def check(self) -> None:
        """Check that the database has the schema of this version.

        Raises:
            SettingsError: The schema is missing or has another version.
            NotReady: The database is unreachable or fails.
        """
        with self._answering():
            self.database.check()

    def report(self, query: Query) -> Report:
        """Return usage, price and cost. The call blocks, at most for the timeout per statement.

        Raises:
            NotReady: The database is unreachable or fails.
        """
        with self._answering(), self.database.connect() as connection:
            return read_report(connection, query, self.tariff, self.gpu_hour_price)

    def levels(self, tenants: Iterable[str], now: int) -> dict[str, Level]:
        """Return the amounts spent and reserved by each tenant, with one blocking query per tenant.

        Args:
            tenants: Names of the tenants.
            now: Unix time, seconds.

        Raises:
            NotReady: The database is unreachable or fails.
        """
        with self._answering(), self.database.connect() as connection:
            return {tenant: read_level(connection, tenant, now) for tenant in tenants}

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except DATABASE_ERRORS as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise NotReady(
                f"the ledger's database {self.where} does not answer ({reason}); requests are "
                "recorded meanwhile, try again later"
            ) from error
