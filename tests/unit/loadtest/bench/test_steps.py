"""The trace of engine steps: matching the ranks' collectives, and the tables."""

import pytest

from loadtest.bench.steps import collectives, collectives_table, parts_table

EARLIER = ("scatter", 0, 9_000, "8")
FIRST = [
    EARLIER,  # the other rank's recording begins later
    ("token counts", 10_000, 60_000, ""),
    ("gather", 100_000, 150_000, "4352"),
    ("step", 5_000, 205_000, "0"),
]
SECOND = [
    ("token counts", 40_000, 70_000, ""),
    ("gather", 90_000, 152_000, "4352"),
    ("step", 35_000, 195_000, "1"),
]


def test_a_collective_is_a_wait_for_the_last_rank_and_an_exchange():
    gather, counts = collectives([FIRST, SECOND])
    assert (gather.name, gather.bytes, gather.wait, gather.exchange) == ("gather", 4352, 10, 52)
    assert (counts.name, counts.bytes, counts.wait, counts.exchange) == ("token counts", 0, 30, 30)


def test_ranks_that_were_recorded_in_different_steps_are_noticed():
    with pytest.raises(ValueError, match="not in the same order"):
        collectives([FIRST, [EARLIER]])


def test_tables():
    assert parts_table(FIRST).splitlines()[2:] == [
        "| step | 1.00 | 200 | 0 | 100.0% |",
        "| token counts | 1.00 | 50 | 0 | 25.0% |",
        "| gather | 1.00 | 50 | 0 | 25.0% |",
        "| scatter | 1.00 | 9 | 0 | 4.5% |",
    ]
    assert collectives_table(collectives([FIRST, SECOND])).splitlines()[2:] == [
        "| token counts | 1 | 0 | 30 | 30 | 30 | 30 | 0 |",
        "| gather | 1 | 4352 | 10 | 10 | 52 | 52 | 0 |",
    ]
