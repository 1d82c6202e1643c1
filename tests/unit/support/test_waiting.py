"""Waiting for what takes as long as the machine needs."""

import pytest

from tests.support.waiting import PATIENCE, in_time


class Late(Exception):
    pass


async def test_the_first_time_that_is_long_enough_counts():
    given = []

    async def attempt(seconds):
        given.append(seconds)
        if len(given) < 4:
            raise Late
        return "result"

    assert await in_time(attempt, Late) == "result"
    assert given == pytest.approx([0.1, 0.4, 1.6, 6.4])


async def test_other_failures_are_not_tried_again():
    given = []

    async def attempt(seconds):
        given.append(seconds)
        raise ValueError

    with pytest.raises(ValueError):
        await in_time(attempt, (Late, AssertionError))
    assert len(given) == 1


async def test_it_ends():
    given = []

    async def attempt(seconds):
        given.append(seconds)
        raise Late

    with pytest.raises(AssertionError, match="were not enough"):
        await in_time(attempt, Late)
    assert max(given) <= PATIENCE / 2
