"""The real thing, in short: kill -9 of a rank with a second group, and with none."""

import pytest

from tests.faults.real.deployment import deployed
from tests.faults.real.rows import disturbed, undisturbed
from tests.faults.real.streams import KINDS
from tests.faults.real.strikes import FAULTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

COUNT, TOKENS = 32, 400
AIM = 5.0
"""Seconds that a stream may pause when another group is there; printed, not asserted."""


@pytest.mark.parametrize(
    ("groups", "fault"),
    [pytest.param(2, "kill-core", id="two"), pytest.param(1, "kill-actor", id="one")],
)
async def test_kill_9_of_a_rank_loses_nothing(groups, fault, record_property):
    async with deployed(groups) as running:
        reference, first = await undisturbed(running, COUNT, TOKENS, tuple(KINDS))
        assert first.good, first.trouble
        row = await disturbed(running, FAULTS[fault], reference, TOKENS, wait=False)
    record_property("longest_gap_seconds", row.longest_gap)
    assert row.resumed_on > 0, "the fault struck nobody"
    assert row.trouble == ()
    assert (row.completed, row.equal) == (COUNT, COUNT)
    if groups > 1 and row.longest_gap > AIM:
        print(f"longest gap {row.longest_gap:.1f} s, aimed at {AIM:g} s")  # noqa: T201
