"""DrainGate counts requests, closes, and waits for the last one."""

import asyncio

import pytest

from serving.edge.gate import DrainGate
from serving.errors import NotReady


async def test_idle_at_first():
    assert await DrainGate().wait_idle(10)


async def test_waits_for_the_last_one():
    gate = DrainGate()
    with gate.track():
        waiting = asyncio.create_task(gate.wait_idle(10))
        with gate.track():
            assert gate.inflight == 2
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting
    assert gate.inflight == 0


async def test_gives_up_at_its_timeout():
    gate = DrainGate()
    with gate.track():
        assert not await gate.wait_idle(0.01)


async def test_an_exception_counts_out_too():
    gate = DrainGate()
    with pytest.raises(ValueError, match="x"), gate.track():
        raise ValueError("x")
    assert gate.inflight == 0


def test_closed_gate_says_why():
    gate = DrainGate()
    gate.check()
    gate.close("it is shutting down")
    assert not gate.open
    with pytest.raises(NotReady, match="shutting down"):
        gate.check()
