"""Number of fuzz cases, and the router under test."""

import os

import httpx
import pytest
import pytest_asyncio

from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import PATIENCE
from tests.support.watchdog import CROWDED, LIMIT, Watchdog


@pytest.fixture(scope="session")
def cases_in_all() -> int:
    """Number of cases over all files of this directory (``make fuzz`` runs 20,000)."""
    return int(os.environ.get("FUZZ_CASES", "2000"))


@pytest.fixture(scope="session")
def seed() -> int:
    return int(os.environ.get("FUZZ_SEED", "0"))


@pytest.fixture
def show(capsys):
    """Print the number of each kind of answer, for ``make fuzz``."""

    def print_counts(counts):
        if "FUZZ_CASES" in os.environ:
            with capsys.disabled():
                print(*sorted(counts.items(), key=str), sep="\n")  # noqa: T201

    return print_counts


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stand():
    settings = stand_settings(
        group={"data_parallel": 2}, engine={"max_model_len": 384}, router={"max_body_bytes": 2**20}
    )
    async with standing(settings) as stand:
        yield stand


@pytest_asyncio.fixture(loop_scope="session")
async def watched(stand):
    """Assert that no turn of the router's event loop takes too long during a test."""
    with Watchdog(limit=LIMIT if "FUZZ_CASES" in os.environ else CROWDED) as dog:
        yield dog
    dog.check()


@pytest_asyncio.fixture(loop_scope="session")
async def rest(stand, watched):
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=stand.router.addresses.rest, timeout=PATIENCE, limits=limits
    ) as client:
        yield client
