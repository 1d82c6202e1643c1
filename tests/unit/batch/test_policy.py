"""The policy of the scheduler on a simulated group, in virtual time: the same result each time."""

import pytest

from tests.batch.simulation import ALONE, CAP, HEADROOM, UNPROTECTED, compare


@pytest.mark.parametrize(
    ("growth", "used"),
    [
        pytest.param(0.2, 0.8, id="flat steps"),
        pytest.param(2.0, 0.25, id="steep steps"),
    ],
)
def test_lines_use_idle_capacity_and_leave_the_latencies_of_requests(growth, used):
    found = compare(growth, seconds=60.0)
    rows = {mode: outcome.row() for mode, outcome in found.items()}
    alone, beside, full = rows[ALONE], rows[HEADROOM], rows[UNPROTECTED]
    for column in (1, 3):  # p99 of TTFT and of ITL
        assert beside[column] <= 1.1 * alone[column] + 0.5
        assert full[column] > beside[column]
    idle = found["capacity"].line_tokens - alone[4]
    assert beside[5] >= used * idle
    if growth == 2.0:
        assert rows[CAP][1] > 1.2 * alone[1]
