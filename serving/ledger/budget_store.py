"""Budget reservations in the ledger's database, which several routers may share.

One transaction serves all waiting requests of a router. Only one router at a time decides on the
reservations of a tenant, so two routers never reserve the same money. A reservation ends when its
request's record is inserted (``LedgerDatabase.insert``) or when its lease expires: routers renew
the leases of running requests, so the leases of a router that died expire.
"""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Connection,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)

from serving.ledger.budget import Claim, Level, Period, Settlement, Verdict, judge
from serving.ledger.database import LedgerDatabase
from serving.ledger.schema import RESERVATIONS, SPENDING

LEASE = 60
"""Time after which a reservation expires unless its router renews it, seconds. Also the time within
which the record of a finished request must arrive."""

_HELD, _SPENT = RESERVATIONS.c, SPENDING.c


class BudgetStore:
    """The reservations of one router. Methods block; call them from one thread at a time."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._holder = uuid4().hex
        self._ready = False

    def update(
        self, claims: Sequence[Claim], settlements: Sequence[Settlement], *, renew: bool, now: int
    ) -> list[Verdict]:
        """Decide on claims and write settlements, in one transaction.

        Args:
            claims: The claims, decided in this order.
            settlements: Finished prompts; those without a reservation are ignored.
            renew: Whether to renew the leases of this router's reservations.
            now: Unix time, seconds.

        Returns:
            A verdict for each claim.

        Raises:
            SettingsError: The database's schema has a later version.
            DATABASE_ERRORS: The database is unreachable or fails. Nothing was changed, unless only
                the response to the commit was lost.
        """
        if not self._ready:
            self._database.migrate()
            self._ready = True
        try:
            with self._database.write() as connection:
                # Done first, before others wait for this transaction's locks.
                self._settle(connection, settlements, now)
                if renew:
                    self._renew(connection, now)
                return self._decide(connection, claims, now)
        except BaseException:
            self._ready = False  # the database may have been replaced by an empty one
            raise

    def _decide(self, connection: Connection, claims: Sequence[Claim], now: int) -> list[Verdict]:
        # All routers use the same order, because each tenant is locked until the commit.
        tenants = sorted({claim.tenant for claim in claims})
        levels = {tenant: self._level(connection, tenant, now) for tenant in tenants}
        verdicts = [judge(claim, levels[claim.tenant]) for claim in claims]
        reserved = [
            {
                "record_id": claim.record_id,
                "number": claim.number,
                "tenant": claim.tenant,
                "key_id": claim.key_id or "",
                "amount": claim.amount,
                "holder": self._holder,
                "expires": now + LEASE,
            }
            for claim, verdict in zip(claims, verdicts, strict=True)
            if verdict.refused is None
        ]
        if reserved:
            connection.execute(_RESERVE, reserved)
        return verdicts

    def _level(self, connection: Connection, tenant: str, now: int) -> Level:
        """Lock a tenant until the transaction ends; return the amounts that count against it."""
        if connection.dialect.name == "postgresql":
            connection.execute(_LOCK, {"tenant": tenant})
        return read_level(connection, tenant, now)

    def _settle(self, connection: Connection, settlements: Sequence[Settlement], now: int) -> None:
        used = [_row(each, now) for each in settlements if each.amount is not None]
        unused = [_row(each, now) for each in settlements if each.amount is None]
        if used:
            connection.execute(_SETTLE, used)
        if unused:
            connection.execute(_REMOVE, unused)

    def _renew(self, connection: Connection, now: int) -> None:
        """Renew this router's leases, and delete expired ones of all routers."""
        connection.execute(_RENEW, {"mine": self._holder, "until": now + LEASE})
        connection.execute(_EXPIRE, {"now": now})


def read_level(connection: Connection, tenant: str, now: int) -> Level:
    """Return, without locking, the amounts that count against a tenant's budgets at a Unix time."""
    today, _ = Period.DAY.bounds(now)
    month, _ = Period.MONTH.bounds(now)
    level = Level()
    given = {"tenant": tenant, "today": today, "month": month, "now": now}
    for key_id, spent_today, spent, held in connection.execute(_LEVEL, given):
        level.add(key_id, day=int(spent_today), month=int(spent), held=int(held))
    return level


def _row(settlement: Settlement, now: int) -> dict[str, Any]:
    return {
        "the_record": settlement.record_id,
        "the_number": settlement.number,
        "used": settlement.amount,
        "until": now + LEASE,
    }


def _level_of_a_tenant() -> CompoundSelect[Any]:
    """Return the statement that reads each key's spending (day, month) and reservations.

    It is a single statement, so that a record inserted concurrently counts as spent or as reserved,
    never as neither.
    """
    tenant: BindParameter[str] = bindparam("tenant")
    today = case((_SPENT.day >= bindparam("today"), _SPENT.amount), else_=0)
    spent = (
        select(_SPENT.key_id, func.sum(today), func.sum(_SPENT.amount), text("0"))
        .where(_SPENT.tenant == tenant, _SPENT.day >= bindparam("month"))
        .group_by(_SPENT.key_id)
    )
    held = (
        select(_HELD.key_id, text("0"), text("0"), func.sum(_HELD.amount))
        .where(_HELD.tenant == tenant, _HELD.expires > bindparam("now"))
        .group_by(_HELD.key_id)
    )
    return spent.union_all(held)


def _free(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition for the rows that no other transaction has locked.

    The router's writer, in another thread, locks the rows that it deletes; waiting for it could
    deadlock.
    """
    names = (_HELD.record_id, _HELD.number)
    found = select(*names).where(*conditions).with_for_update(skip_locked=True)
    return tuple_(*names).in_(found)


# Built once, because building the statements takes longer than running them.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('budget/' || :tenant, 0))")
_LEVEL = _level_of_a_tenant()
_RESERVE = insert(RESERVATIONS)
_ONE = _free(_HELD.record_id == bindparam("the_record"), _HELD.number == bindparam("the_number"))
_SETTLE = (
    update(RESERVATIONS)
    .where(_ONE)
    # A reservation that was committed late, after the record was inserted, no longer has a holder,
    # so its lease expires.
    .values(amount=bindparam("used"), expires=bindparam("until"), holder="")
)
_REMOVE = delete(RESERVATIONS).where(_ONE)
_RENEW = (
    update(RESERVATIONS)
    .where(_free(_HELD.holder == bindparam("mine")))
    .values(expires=bindparam("until"))
)
_EXPIRE = delete(RESERVATIONS).where(_free(_HELD.expires <= bindparam("now")))
