"""The gate counts, closes and waits."""

import asyncio

import pytest

from serving.edge.gate import Gate
from serving.errors import NotReady


async def test_idle_at_first():
    assert await Gate().idle(10)


async def test_waits_for_the_last_one():
    gate = Gate()
    with gate.passing():
        waiting = asyncio.create_task(gate.idle(10))
        with gate.passing():
            assert gate.inflight == 2
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting
    assert gate.inflight == 0


async def test_gives_up_at_its_timeout():
    gate = Gate()
    with gate.passing():
        assert not await gate.idle(0.01)


async def test_an_exception_counts_out_too():
    gate = Gate()
    with pytest.raises(ValueError, match="x"), gate.passing():
        raise ValueError("x")
    assert gate.inflight == 0


def test_closed_gate_says_why():
    gate = Gate()
    gate.check()
    gate.close("it is shutting down")
    assert not gate.open
    with pytest.raises(NotReady, match="shutting down"):
        gate.check()
