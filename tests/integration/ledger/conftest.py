"""The ledger's databases: SQLite, and a real PostgreSQL server that a test can kill."""

import itertools

import pytest

from serving.settings import LedgerSettings
from tests.support.postgres import postgres_or_skip

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_session():
    with postgres_or_skip() as server:
        yield server


@pytest.fixture
def postgres(postgres_session):
    yield postgres_session
    if postgres_session.process is None:  # the test killed it
        postgres_session.start()


@pytest.fixture
def sqlite_settings(tmp_path):
    return LedgerSettings(directory=str(tmp_path), database_timeout=30.0)


@pytest.fixture
def postgres_settings(tmp_path, postgres):
    """Settings with an empty database of the server."""
    url = postgres.create_database(f"ledger_{next(_numbers)}")
    return LedgerSettings(directory=str(tmp_path), database_url=url, database_timeout=30.0)


@pytest.fixture(params=["sqlite_settings", "postgres_settings"])
def ledger_settings(request):
    """Settings with an empty database of either kind."""
    return request.getfixturevalue(request.param)
