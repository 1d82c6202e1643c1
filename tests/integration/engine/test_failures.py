"""A vLLM engine that stalls or loses a process reports that, and leaves nothing behind."""

import asyncio
import signal

import psutil
import pytest
from ranks import DEADLINE, running, submit

from serving.errors import EngineError, SettingsError
from serving.link.v1 import link_pb2
from serving.settings import (
    EngineSettings,
    FleetSettings,
    GroupSettings,
    Settings,
)
from tests.support.engines import generate

pytestmark = pytest.mark.vllm

ALONE = Settings(group=GroupSettings(data_parallel=1))
PAIR = Settings(
    group=GroupSettings(data_parallel=2),
    engine=EngineSettings(kv_cache_gib=0.25, max_num_seqs=4),
    fleet=FleetSettings(stall_timeout=1.0),
)


def core(rank):
    """Find the process that schedules and runs the model of a rank."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if "".join(process.cmdline()).strip().startswith(f"VLLM::EngineCore_DP{rank}")
    ]
    assert len(found) == 1
    return found[0]


async def until_unhealthy(engine):
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await engine.check_health()
            except EngineError as error:
                return str(error)
            await asyncio.sleep(0.05)


async def test_a_stall_is_reported_and_forgiven_and_a_death_is_final():
    async with running(PAIR) as (engine, other):
        await engine.check_health()
        stalled = core(0)
        stream = generate(engine, submit("slow", [1, 50, 51], max_tokens=200))
        await anext(stream)
        stalled.send_signal(signal.SIGSTOP)
        assert "no step" in await until_unhealthy(engine)
        load = await engine.load()
        assert load.health == link_pb2.LoadSnapshot.STALLED
        assert load.since_last_step_ms >= 1000
        stalled.send_signal(signal.SIGCONT)
        async with asyncio.timeout(DEADLINE):
            deltas = [delta async for delta in stream]
        assert deltas[-1].finished
        assert not deltas[-1].HasField("error")
        await engine.check_health()

        stream = generate(engine, submit("lost", [1, 50, 51], max_tokens=1500))
        await anext(stream)
        # The engine of the other rank also ends: it waits for the killed one in each layer.
        second = generate(other, submit("also lost", [1, 50, 51], max_tokens=1500))
        await anext(second)
        core(1).kill()
        for each in (stream, second):
            async with asyncio.timeout(DEADLINE):
                deltas = [delta async for delta in each]
            assert deltas[-1].finished
            assert deltas[-1].error.code == link_pb2.RequestError.ENGINE_FAILED
        with pytest.raises(EngineError, match="died"):
            await engine.check_health()
        assert (await engine.load()).health == link_pb2.LoadSnapshot.FAILED
        refused = [delta async for delta in generate(engine, submit("late", [1, 2], max_tokens=2))]
        assert [delta.error.code for delta in refused] == [link_pb2.RequestError.ENGINE_FAILED]


async def test_a_start_that_the_settings_forbid_says_why_and_leaves_nothing():
    settings = ALONE.model_copy(update={"engine": EngineSettings(max_model_len=10**7)})
    with pytest.raises(SettingsError, match="max_model_len"):
        async with running(settings):
            pytest.fail("it started")
