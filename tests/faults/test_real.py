"""The real thing, in short: kill -9 of a rank with a second group, and with none."""

import asyncio
import time

import pytest

from tests.faults.real.deployment import deployed
from tests.faults.real.rows import disturbed, undisturbed
from tests.faults.real.streams import KINDS
from tests.faults.real.strikes import FAULTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

COUNT, TOKENS = 20, 240
"""Each kind of request twice over each protocol, long enough to be struck and continued."""
TAKE_OVER = 15.0
"""Seconds from the start of a controller of Serve until it has asked every rank."""
AIM = 5.0
"""Seconds that a stream may pause when another group is there; printed, not asserted."""


@pytest.mark.parametrize(
    ("groups", "fault"),
    [pytest.param(2, "kill-core", id="two"), pytest.param(1, "kill-actor", id="one")],
)
async def test_kill_9_of_a_rank_loses_nothing(groups, fault, record_property):
    async with deployed(groups) as running:
        if groups == 1:
            reference = await without_serves_controller(running)
        else:
            reference, first = await undisturbed(running, COUNT, TOKENS, tuple(KINDS))
            assert first.good, first.trouble
        row = await disturbed(running, FAULTS[fault], reference, TOKENS, wait=False)
    record_property("longest_gap_seconds", row.longest_gap)
    assert row.resumed_on > 0, "the fault struck nobody"
    assert row.trouble == ()
    assert (row.completed, row.equal) == (COUNT, COUNT)
    if groups > 1 and row.longest_gap > AIM:
        print(f"longest gap {row.longest_gap:.1f} s, aimed at {AIM:g} s")  # noqa: T201


async def without_serves_controller(running):
    """See that the ranks serve while Ray replaces the controller; return what they said."""
    before, old = await running.ready(), running.controller()
    old.kill()
    reference, row = await undisturbed(running, COUNT, TOKENS, tuple(KINDS))
    assert row.good, row.trouble
    # The new one looks at every rank within seconds, and stops those that cannot answer.
    while running.controller().create_time() + TAKE_OVER > time.time():
        await asyncio.sleep(0.5)
        assert await running.ready() == before
    assert running.controller().pid != old.pid
    return reference
