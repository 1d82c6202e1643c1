"""Released SDKs and frameworks for Python, unmodified, against the running system.

Each runs in an environment of .tools/clients, with the same features as in ``make clients``.
"""

import asyncio

import pytest

from tests.clients import installed
from tests.clients.clients import CLIENTS
from tests.clients.runner import run_clients

pytestmark = pytest.mark.e2e

PYTHON = [client for client in CLIENTS if client.language == "Python"]


@pytest.fixture(scope="module")
def results(stack):
    """Run all clients once, several at a time."""
    clients = [client for client in PYTHON if not installed.why_not(client.environment)]
    found = asyncio.run(run_clients(clients, stack.target, at_once=6))
    return {result.client.name: result for result in found}


@pytest.mark.parametrize("client", PYTHON, ids=lambda client: client.name)
def test_a_client_finds_what_it_expects(client, results):
    if missing := installed.why_not(client.environment):
        pytest.skip(missing)
    result = results[client.name]
    # Reasons first: a summary of a run shows little more than the first line.
    reasons = "; ".join(f"{name}: {outcome.reason}" for name, outcome in result.failed.items())
    traces = "\n".join(outcome.trace for outcome in result.failed.values())
    assert not result.failed, f"{reasons}\n{traces}\n{result.said[-2000:]}"
    assert any(outcome.status == "passed" for outcome in result.outcomes.values())


def test_nothing_runs_on_after_them(results, eventually_idle):
    eventually_idle()
