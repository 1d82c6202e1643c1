"""A write that does not end is noticed, once; others cost nothing."""

import asyncio

from serving.edge.write_watch import WriteWatch


async def test_a_write_that_does_not_end_is_given_up():
    given_up = asyncio.Event()
    with WriteWatch(0.01, given_up.set) as watch:
        watch.writing()
        async with asyncio.timeout(10):
            await given_up.wait()


def test_looks_back():
    asyncio.run(look_back())


async def look_back():
    given_up = []
    with WriteWatch(1000.0, lambda: given_up.append(1)) as watch:
        watch._look()
        watch.writing()
        watch._look()
        watch.written()
        watch._since = None
        watch._look()
        assert given_up == []
        watch.writing()
        watch._since -= 1000.0
        watch._timer.cancel()
        watch._look()
        assert given_up == [1]
        assert watch._timer is None


async def test_nothing_is_left_after_it():
    with WriteWatch(1000.0, lambda: None) as watch:
        timer = watch._timer
    assert timer.cancelled()
    assert watch._timer is None
