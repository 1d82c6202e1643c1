"""Settings of the ledger: where requests are recorded, and what tokens and GPUs cost."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, model_validator

from serving.settings.base import Seconds, SettingsGroup

# pydantic's own schema has a pattern with a lookahead, which Helm's validator does not support.
Money = Annotated[
    Decimal,
    Field(ge=0, allow_inf_nan=False, max_digits=10),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""An exact amount of money with at most 10 digits, as in a tariff."""


class LedgerSettings(SettingsGroup):
    """The record of every request, its price and its cost (deploy/docs/usage.md)."""

    directory: str | None = None
    """Folder of the records that are not in the database yet and, without database_url, of the
    SQLite database. Created if missing. Each router needs a separate folder. If null, the ledger is
    disabled."""
    database_url: str | None = Field(None, pattern=r"^postgresql://")
    """PostgreSQL database that several routers share, e.g. postgresql://moe@host/ledger. Null means
    an SQLite database in directory."""
    database_password_file: str | None = None
    """File with the password of the PostgreSQL user. Null means the password in database_url, if it
    contains one."""
    database_timeout: Seconds = 10.0
    """Timeout for connecting to the database and for each statement, seconds."""
    flush_interval: Seconds = 1.0
    """Interval at which new records are inserted into the database, seconds."""
    max_spool_bytes: int = Field(2**30, ge=2**16)
    """Maximum total size of the records in directory that are not in the database yet, bytes; a
    record takes about 500 bytes. Further records are dropped and counted."""
    budget_timeout: Seconds = 0.25
    """Maximum time that a request waits for the reservation of its budgets, seconds."""
    budget_down: Literal["open", "closed"] = "open"
    """Behaviour while the database does not answer. open: requests are admitted without a
    reservation and count as spent once they are recorded. closed: requests of tenants and keys with
    a budget are rejected."""
    tariff_file: str | None = None
    """YAML file with the prices of tokens, by model. Null means DeepSeek's published tariff for
    DeepSeek-R1 and DeepSeek-V3."""
    gpu_hour_price: Money | None = None
    """Price of one GPU-hour, in the tariff's currency. On CPU, a rank's workers count as GPUs. If
    null, costs are not computed."""

    @model_validator(mode="after")
    def _check(self) -> "LedgerSettings":
        if self.database_url is not None and self.directory is None:
            raise ValueError(
                "database_url requires directory, which holds the records while the database "
                "is unreachable"
            )
        if self.database_password_file is not None and self.database_url is None:
            raise ValueError("database_password_file requires database_url")
        return self
