"""A real PostgreSQL server that a test can kill."""

import pytest

from tests.support.postgres import postgres_or_skip


@pytest.fixture(scope="session")
def postgres():
    with postgres_or_skip() as server:
        yield server
