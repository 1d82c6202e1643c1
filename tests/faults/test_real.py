"""A short test on a real system: kill -9 of a rank, with and without another ready group.

Both tests share one system of two groups; each begins when both are ready. Where there is a
browser, the console's pages are open meanwhile.
"""

import asyncio
import contextlib
import time

import pytest
import pytest_asyncio

from tests.faults.real.console import chat_page, expect_state, fleet_page, opened_browser
from tests.faults.real.deployment import deployed
from tests.faults.real.rows import disturbed, undisturbed
from tests.faults.real.streams import KINDS
from tests.faults.real.strikes import FAULTS
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1500),
]

COUNT, TOKENS = 20, 240
"""Each kind of request twice over each protocol, long enough to be interrupted and continued."""
TAKE_OVER = 15.0
"""Seconds from the start of Serve's controller until it has checked every rank."""
AIM = 5.0
"""Expected maximum pause of a stream if there is another group, seconds; printed, not asserted."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running():
    async with deployed(groups=2) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(running):
    """The undisturbed answers; Serve's controller is killed before."""
    before, old = await running.ready(), running.controller()
    old.kill()
    answers, row = await undisturbed(running, COUNT, TOKENS, tuple(KINDS))
    assert row.good, row.trouble

    def replaced():
        with contextlib.suppress(LookupError):
            return running.controller().pid != old.pid
        return False

    await eventually(replaced, "a new controller")
    # It checks every rank within seconds and stops those that do not respond.
    while running.controller().create_time() + TAKE_OVER > time.time():
        await asyncio.sleep(0.5)
        assert await running.ready() == before
    return answers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    """A browser; None if this machine has none."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(opened_browser())
        except pytest.skip.Exception:
            opened = None
        yield opened


async def strike(running, fault, reference, record_property, **more):
    """Inject the fault while all requests stream; check that all answers are complete."""
    row = await disturbed(running, FAULTS[fault], reference, TOKENS, wait=False, **more)
    record_property("longest_gap_seconds", row.longest_gap)
    assert row.resumed_on > 0, "the fault hit no request"
    assert row.trouble == ()
    assert (row.completed, row.equal) == (COUNT, COUNT)
    return row


async def test_kill_9_of_a_rank_loses_nothing_while_no_other_group_serves(
    running, reference, browser, record_property
):
    await running.until_whole()
    first, other = await running.ready()
    async with contextlib.AsyncExitStack() as stack:
        page = browser and await stack.enter_async_context(fleet_page(browser, running))

        async def seen(group, state):
            if page is not None:
                await expect_state(page, group, state)

        async with running.cordoned(other):
            assert list(await running.ready()) == [first]
            await seen(other, "draining")
            await seen(first, "ready")
            await strike(running, "kill-actor", reference, record_property)
            assert first not in await running.ready(), "the requests waited for a new group"
            await seen(first, "gone")
        await seen(other, "ready")


async def test_kill_9_of_a_rank_loses_nothing_while_another_group_serves(
    running, reference, browser, record_property
):
    await running.until_whole()
    async with contextlib.AsyncExitStack() as stack:
        chat = browser and await stack.enter_async_context(chat_page(browser, running))
        row = await strike(running, "kill-core", reference, record_property, aim=chat and chat.ask)
        if chat is not None:
            await chat.check()
    if row.longest_gap > AIM:
        print(f"longest gap {row.longest_gap:.1f} s, aimed at {AIM:g} s")  # noqa: T201
