"""What the watchdog of the event loop detects, and what it ignores."""

import asyncio
import gc
import time
from functools import partial

import pytest
import uvloop

from tests.support.watchdog import _FAKES, _SERVING, Watchdog

LONG = 0.08
"""Seconds of CPU time; the limit is 0.05."""
_SOURCE = """
import time
def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
def call(function):
    function()
"""


def functions(name):
    """Code compiled with this file name, as it appears in the stack."""
    found = {}
    exec(compile(_SOURCE, name, "exec"), found)
    return found


ours = functions(f"{_SERVING}x.py")
fake = functions(f"{_FAKES}_x.py")
theirs = functions("/x/site-packages/httpx/x.py")
vllm = functions("/x/site-packages/vllm/x.py")


def burn_in_the_test():
    until = time.thread_time() + LONG
    while time.thread_time() < until:
        pass


async def spread():
    for _ in range(8):
        await asyncio.sleep(0)
        ours["burn"](LONG / 8)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(function, **options):
        async def main():
            with Watchdog(**options) as dog:
                for _ in range(3):
                    await asyncio.sleep(0.01)
                asyncio.get_running_loop().call_later(0.001, function)
                await asyncio.sleep(0.05)
                await asyncio.sleep(0.01)
            return dog

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return run


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(partial(ours["burn"], LONG), id="ours"),
        pytest.param(partial(vllm["burn"], LONG), id="a-library-of-the-server"),
        pytest.param(
            partial(ours["call"], partial(theirs["burn"], LONG)), id="a-library-under-ours"
        ),
    ],
)
def test_a_long_turn_is_found_with_its_stack(run, function):
    dog = run(function)
    assert dog.count == 1
    assert dog.worst > dog.limit
    with pytest.raises(AssertionError, match=r"x.py:\d+ burn"):
        dog.check()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda: time.sleep(2 * LONG), id="waiting"),
        pytest.param(burn_in_the_test, id="the-test"),
        pytest.param(lambda: fake["burn"](LONG), id="a-fake"),
        pytest.param(lambda: ours["call"](burn_in_the_test), id="the-test-under-ours"),
    ],
)
def test_other_turns_are_none(run, function):
    dog = run(function)
    dog.check()
    assert dog.turns > 3


def test_many_short_turns_are_no_long_one():
    async def main():
        with Watchdog() as dog:
            await spread()
        return dog

    dog = asyncio.run(main())
    dog.check()
    assert dog.turns >= 7  # the first had begun


def test_the_collector_counts_where_it_is_asked_for(run):
    kept = [[] for _ in range(1_000_000)]
    collect = partial(ours["call"], gc.collect)
    dog = run(collect, limit=0.01)
    dog.check()
    assert dog.worst > dog.limit
    assert run(collect, limit=0.01, collector=True).count == 1
    del kept


def test_in_a_process_of_its_own_everything_is_ours(run):
    assert run(burn_in_the_test, all_ours=True).count == 1


def test_a_watchdog_that_saw_nothing_does_not_pass():
    async def main():
        return Watchdog()

    with pytest.raises(AssertionError, match="no turn"):
        asyncio.run(main()).check()
