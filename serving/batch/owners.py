"""Leases of the router processes that share a database.

A process owns what it works on: a file that it writes, a batch that it validates or finalizes,
lines that it runs. It renews a single row, regardless of how much it owns; once the row has
expired, other processes take over.
"""

from sqlalchemy import Connection, ScalarSelect, delete, select, update
from sqlalchemy.sql.elements import ColumnElement

from serving.batch.schema import OWNERS


def renew(connection: Connection, owner: str, now: float, seconds: float) -> None:
    """Extend the lease of a process, and delete leases that ended over an hour ago."""
    renewed = connection.execute(
        update(OWNERS).where(OWNERS.c.owner == owner).values(lease_until=now + seconds)
    )
    if not renewed.rowcount:
        connection.execute(OWNERS.insert().values(owner=owner, lease_until=now + seconds))
        connection.execute(delete(OWNERS).where(OWNERS.c.lease_until < now - 3600))


def release(connection: Connection, owner: str) -> None:
    """End the lease of a process; other processes can take over at once."""
    connection.execute(delete(OWNERS).where(OWNERS.c.owner == owner))


def release_all(connection: Connection) -> None:
    """End all leases; only for a database that no other process uses."""
    connection.execute(delete(OWNERS))


def _living(now: float) -> ScalarSelect[str]:
    return select(OWNERS.c.owner).where(OWNERS.c.lease_until >= now).scalar_subquery()


def abandoned(owner: ColumnElement[str | None], now: float) -> ColumnElement[bool]:
    """Return the condition that a column names a process without a lease; false for null."""
    return owner.is_not(None) & owner.not_in(_living(now))


def available(owner: ColumnElement[str | None], now: float) -> ColumnElement[bool]:
    """Return the condition that no process with a lease owns a row."""
    return owner.is_(None) | owner.not_in(_living(now))
