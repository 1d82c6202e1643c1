"""Tables of the ledger's database, for queries and inserts; ``migrations`` creates the tables.

Columns of records have the names and units of the fields in ``serving.ledger.records``.
"""

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table

METADATA = MetaData()

REQUESTS = Table(
    "ledger_requests",
    METADATA,
    Column("record_id", String, primary_key=True),
    Column("finished_us", BigInteger, nullable=False, index=True),
    Column("request_id", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("key_id", String),
    Column("model", String, nullable=False),
    Column("priority", String, nullable=False),
    Column("protocol", String, nullable=False),
    Column("route", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("rank_us", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("resumptions", Integer, nullable=False),
    Column("reasoning_tokens", BigInteger),
    Column("drafted_tokens", BigInteger),
    Column("accepted_tokens", BigInteger),
    Column("ttft_us", BigInteger),
    Column("adapter", String),
    Column("pool", String),
)
CAPACITY = Table(
    "ledger_capacity",
    METADATA,
    Column("slot", BigInteger, primary_key=True),
    Column("group_id", String, primary_key=True),
    Column("seconds", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
)
SPENDING = Table(
    "ledger_spending",
    METADATA,
    Column("tenant", String, primary_key=True),
    # Empty if no key was required (a primary key cannot contain null).
    Column("key_id", String, primary_key=True),
    # Start of the day, Unix seconds.
    Column("day", BigInteger, primary_key=True),
    # Billionths of the tariff's currency, as in serving.ledger.budget.
    Column("amount", BigInteger, nullable=False),
)
"""Prices of the recorded requests, at the tariff when they were inserted."""
RESERVATIONS = Table(
    "ledger_reservations",
    METADATA,
    Column("record_id", String, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("tenant", String, nullable=False, index=True),
    Column("key_id", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    # The router that renews the lease. Empty if the request has ended and its record is not
    # inserted yet.
    Column("holder", String, nullable=False, index=True),
    # Unix time from which the reservation no longer counts, seconds.
    Column("expires", BigInteger, nullable=False),
)
"""Budget reservations of requests that are not in ``REQUESTS`` yet."""
