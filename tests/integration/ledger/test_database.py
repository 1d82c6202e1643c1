"""Both databases: migrations from each version, repeated inserts, sums, and errors."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from alembic import command
from msgspec.structs import asdict
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError

from serving.errors import NotReady, SettingsError
from serving.ledger import database as module
from serving.ledger.database import DATABASE_ERRORS, ROW_ERRORS, LedgerDatabase
from serving.ledger.query import HOUR, GroupBy, Query
from serving.ledger.records import SECOND
from serving.ledger.schema import METADATA, REQUESTS
from serving.ledger.sums import capacity_sums, rank_sums, usage_sums
from serving.ledger.view import LedgerView
from serving.settings import LedgerSettings
from serving.telemetry.metrics import REGISTRY
from tests.support.ledgers import DAY, capacity, usage, usages

DAY_SECONDS = 86_400
ALL = frozenset(GroupBy)


@pytest.fixture
def database(ledger_settings):
    made = LedgerDatabase(ledger_settings)
    yield made
    made.close()


def count(database, table="ledger_requests"):
    with database.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


def migrate_to(database, revision):
    with database._engine.begin() as connection:
        config = module._alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_the_migrations_create_the_tables_that_queries_use(database):
    database.migrate()
    database.check()
    with database.connect() as connection:
        found = inspect(connection)
        for table in METADATA.sorted_tables:
            columns = {each["name"]: each for each in found.get_columns(table.name)}
            assert set(columns) == set(table.columns.keys())
            for column in table.columns:
                assert columns[column.name]["nullable"] == column.nullable, column
                assert isinstance(columns[column.name]["type"], column.type.__class__)
            keys = found.get_pk_constraint(table.name)["constrained_columns"]
            assert keys == [each.name for each in table.primary_key]
            wanted = {index.name for index in table.indexes}
            assert {index["name"] for index in found.get_indexes(table.name)} >= wanted


def test_a_database_of_an_older_version_is_migrated_with_its_records(database):
    migrate_to(database, "0001")
    with pytest.raises(SettingsError, match="an earlier version: start a router"):
        database.check()
    with database._engine.begin() as connection:
        connection.execute(REQUESTS.insert(), [asdict(usage("old"))])
    database.migrate()
    database.check()
    database.insert([usage("new"), capacity()])
    assert (count(database), count(database, "ledger_capacity")) == (2, 1)


def test_a_database_of_a_later_version_is_refused_and_unchanged(database):
    database.migrate()
    with database._engine.begin() as connection:
        connection.execute(text("UPDATE ledger_schema SET version_num = '9999'"))
    for act in (database.migrate, database.check):
        with pytest.raises(SettingsError, match="has schema 9999, this version knows up to 0003"):
            act()


def test_a_migration_that_fails_leaves_nothing_behind(database, monkeypatch):
    real = command.upgrade

    def fail(config, revision):
        real(config, revision)
        raise OSError("killed before the commit")

    monkeypatch.setattr(command, "upgrade", fail)
    with pytest.raises(OSError, match="killed"):
        database.migrate()
    monkeypatch.undo()
    database.migrate()
    database.check()


def test_routers_that_start_together_migrate_once(postgres_settings):
    databases = [LedgerDatabase(postgres_settings) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(each.migrate) for each in databases]:
            done.result()
    databases[0].check()
    for each in databases:
        each.close()


def test_a_record_that_is_inserted_again_counts_once(database):
    database.migrate()
    database.insert(usages(5))
    database.insert([*usages(8), usage("r-0", output_tokens=999)])
    assert count(database) == 8
    database.insert([capacity(busy=0.5), capacity(group="g1")])
    database.insert([capacity(busy=0.75)])
    with database.connect() as connection:
        (found,) = capacity_sums(connection, Query(DAY, DAY + DAY_SECONDS)).values()
    assert found.busy_us == 240 * SECOND


def test_prices_are_metrics_of_a_bounded_number_of_tenants(sqlite_settings):
    def price(tenant):
        return REGISTRY.get_sample_value("moe_tenant_price_total", {"tenant": tenant}) or 0.0

    before = price("other")
    database = LedgerDatabase(sqlite_settings, tenant_labels=1)
    database.migrate()
    for _ in range(2):  # the second time, they are there already
        database.insert([usage("a", tenant="first"), usage("b", tenant="second")])
    database.insert([usage("c", tenant="first")])
    database.close()
    assert price("second") == 0.0
    assert 0 < price("first") == pytest.approx(2 * (price("other") - before), rel=1e-3)


def test_a_file_that_is_removed_under_its_connections_is_noticed(sqlite_settings):
    """Commits to the removed file would succeed, and be lost."""
    removed = LedgerDatabase(sqlite_settings)
    removed.migrate()
    removed.insert([usage("a")])
    for file in Path(sqlite_settings.directory).glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(DATABASE_ERRORS):
        removed.insert([usage("b")])
    removed.migrate()
    removed.insert([usage("b")])
    removed.close()
    again = LedgerDatabase(sqlite_settings)
    with again.connect() as connection:
        assert connection.scalar(select(REQUESTS.c.record_id)) == "b"
    again.close()


def test_a_number_that_no_column_holds_is_refused_as_a_row(database):
    database.migrate()
    with pytest.raises(ROW_ERRORS):
        database.insert([usage("a"), usage("b", prompt_tokens=2**64)])


def test_a_refused_record_leaves_out_its_whole_batch(database):
    database.migrate()
    with pytest.raises((DataError, IntegrityError, OverflowError)):
        database.insert([usage("a"), usage("b", tenant=None)])
    assert count(database) == 0


def test_sums_are_by_period_quarter_and_group_and_exact_above_32_bits(database):
    database.migrate()
    big = 3 * 10**9
    database.insert(
        [
            usage("a", at=DAY + 10, prompt_tokens=big, reasoning_tokens=5),
            usage("b", at=DAY + 899.999_999, prompt_tokens=big),
            usage("c", at=DAY + 900, prompt_tokens=big),
            usage("d", at=DAY + HOUR, tenant="bob", key_id=None),
            usage("e", at=DAY + DAY_SECONDS),
            usage("f", at=DAY - 0.000_001),
        ]
    )
    query = Query(DAY, DAY + DAY_SECONDS, HOUR, ALL)
    with database.connect() as connection:
        found = [
            (
                (each.start - DAY) // HOUR,
                each.quarter,
                each.tenant,
                each.key_id,
                each.tokens.requests,
                each.tokens.prompt,
                each.tokens.reasoning,
            )
            for each in usage_sums(connection, query)
        ]
        assert found == [
            (0, 0, "alice", "alice-1", 2, 2 * big, 5),
            (0, 1, "alice", "alice-1", 1, big, 0),
            (1, 4, "bob", None, 1, 10, 0),
        ]
        assert rank_sums(connection, query) == {DAY: 3 * SECOND, DAY + HOUR: SECOND}
        for filters, requests in (
            ({"tenants": ["bob"]}, 1),
            ({"models": ["other"]}, 0),
            ({"keys": ["alice-1"]}, 3),
        ):
            query = Query(DAY, DAY + DAY_SECONDS, **filters)
            sums = usage_sums(connection, query)
            assert sum(each.tokens.requests for each in sums) == requests


def test_a_database_that_is_away_is_a_clear_error(tmp_path):
    settings = LedgerSettings(
        directory=str(tmp_path),
        database_url="postgresql://moe:secret@127.0.0.1:1/ledger",
        gpu_hour_price=Decimal(2),
    )
    database = LedgerDatabase(settings)
    view = LedgerView.of(settings, database)
    for act in (view.check, lambda: view.report(Query(DAY, DAY + DAY_SECONDS))):
        with pytest.raises(NotReady, match=r":1/ledger does not answer \(.*refused") as caught:
            act()
        assert "secret" not in str(caught.value)
    database.close()


def test_a_folder_without_a_ledger_is_a_clear_error(tmp_path):
    database = LedgerDatabase(LedgerSettings(directory=str(tmp_path)))
    with pytest.raises(SettingsError, match="there is no ledger in"):
        database.check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"database_url": "postgresql://host:port/x"},
        {"database_url": "postgresql://host/x", "database_password_file": "/none"},
    ],
)
def test_an_invalid_address_or_password_file_is_a_setting_error(tmp_path, fields):
    settings = LedgerSettings(directory=str(tmp_path), **fields)
    with pytest.raises(SettingsError, match=r"ledger\.database_url or ledger\.database_password"):
        LedgerDatabase(settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"database_url": "postgresql://h/x"}, "requires directory"),
        ({"directory": "x", "database_password_file": "y"}, "requires database_url"),
        ({"directory": "x", "database_url": "mysql://h/x"}, "pattern"),
        ({"directory": "x", "gpu_hour_price": -1}, "greater than or equal"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LedgerSettings(**fields)
