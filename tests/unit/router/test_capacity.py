"""Samples of the fleet's GPUs and their busy time."""

import pytest

from serving.ledger.records import SECOND, GroupCapacity
from serving.router.capacity import SLOT, CapacitySampler
from serving.routing.snapshot import RankLoad
from tests.support import fleets

START = 1_000 * SLOT


def fleet(*busy, epoch="e", workers=1, name="g0"):
    """Return a fleet of one group whose ranks have been busy for some seconds."""
    ranks = (
        fleets.rank(
            index,
            group=name,
            tensor_parallel_size=workers,
        )
        for index in range(len(busy))
    )
    made = [
        type(rank)(**{**fields(rank), "load": RankLoad(busy_seconds_total=seconds)})
        for rank, seconds in zip(ranks, busy, strict=True)
    ]
    return fleets.fleet(fleets.group(*made, name=name, epoch=epoch))


def fields(rank):
    return {
        name: getattr(rank, name) for name in type(rank).__dataclass_fields__ if name != "rank_id"
    }


def slot(before, after):
    sampler = CapacitySampler()
    assert sampler.sample(START, before) == []
    return sampler.sample(START + SLOT, after)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (fleet(10.0, 20.0), fleet(25.0, 20.5), (2, 15.5)),
        (fleet(10.0, workers=4), fleet(25.0, workers=4), (4, 60.0)),
        (fleet(0.0), fleet(90.0), (1, SLOT)),
        (fleet(50.0), fleet(3.0), (1, 0.0)),
        (fleet(10.0), fleet(20.0, 500.0), (2, 10.0)),
        (fleet(10.0, 10.0), fleet(20.0), (1, 10.0)),
    ],
    ids=[
        "two ranks",
        "four workers a rank",
        "a late report",
        "an engine that was restarted",
        "a rank that joined",
        "a rank that left",
    ],
)
def test_busy_time_is_the_increase_of_the_counters(before, after, expected):
    gpus, busy = expected
    assert slot(before, after) == [
        GroupCapacity(START, "g0", SLOT, gpus, round(busy * SECOND)),
    ]


def test_a_group_that_was_not_there_for_the_whole_slot_does_not_count():
    assert slot(fleets.fleet(), fleet(1.0)) == []
    assert slot(fleet(1.0), fleets.fleet()) == []
    assert slot(fleet(1.0, epoch="e1"), fleet(1.0, epoch="e2")) == []


def test_slots_follow_each_other_and_a_jump_of_the_clock_leaves_one_out():
    sampler = CapacitySampler()
    found = [
        [record.slot for record in sampler.sample(boundary, fleet(1.0))]
        for boundary in (
            START,
            START + SLOT,
            START + 2 * SLOT,
            START + 9 * SLOT,  # the machine slept
            START + 10 * SLOT,
            START + 5 * SLOT,  # the clock was set back
            START + 6 * SLOT,
        )
    ]
    assert found == [[], [START], [START + SLOT], [], [START + 9 * SLOT], [], [START + 5 * SLOT]]
