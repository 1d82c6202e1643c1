"""Worker processes: reports, all ways to end, and cleanup."""

import asyncio
import os
import sys

import psutil
import pytest

from serving.engine.fabric import workers
from serving.engine.fabric.plan import Backend, FabricError, Plan
from serving.engine.fabric.workers import Workers
from tests.support.waiting import eventually

CHATTY = """
import json, os, sys
print("a library's banner")
print(json.dumps({"event": "ready", "gpus": int(os.environ["GPUS"])}), flush=True)
job = json.loads(sys.stdin.readline())
print("more of it")
print(json.dumps({"event": "result", "rank": job["rank"]}), flush=True)
sys.stdin.read()
"""
DYING = "import sys; sys.exit('no room for torch')"
DYING_LATER = CHATTY.replace('print("more of it")', "os.kill(os.getpid(), 9)")


@pytest.fixture
def pool(monkeypatch):
    """Return pools whose workers run other code."""

    spawn = asyncio.create_subprocess_exec

    def make(code, *, gpus=0, **changes):
        async def other(*_, **options):
            options["env"] = {**options["env"], "GPUS": str(gpus)}
            return await spawn(sys.executable, "-c", code, **options)

        monkeypatch.setattr(workers.asyncio, "create_subprocess_exec", other)
        return Workers(Plan(2, 0, "h", 1, **changes), os.environ)

    return make


async def finish(pool, count):
    reports = []
    pool.start(
        {number: {"rank": number} for number in range(count)},
        lambda number, report: reports.append((number, report)),
    )
    await eventually(lambda: len(reports) >= count)
    return sorted(reports, key=lambda item: item[0])


@pytest.mark.parametrize(
    ("gpus", "changes", "expected"),
    [
        (0, {}, (1, "gloo")),
        (4, {}, (4, "nccl")),
        (4, {"workers": 2}, (2, "nccl")),
        (0, {"workers": 3}, (3, "gloo")),
        (4, {"backend": Backend.GLOO}, (4, "gloo")),
    ],
)
async def test_one_worker_a_gpu_unless_told_otherwise(pool, gpus, changes, expected):
    one = pool(CHATTY, gpus=gpus, **changes)
    try:
        ready = await one.prepare()
        assert (ready.workers, ready.backend) == expected
        reports = await finish(one, ready.workers)
        assert [report["rank"] for _, report in reports] == list(range(ready.workers))
    finally:
        await one.close()
    assert not psutil.Process().children()


async def test_nccl_without_enough_gpus_is_refused(pool):
    one = pool(CHATTY, gpus=4, workers=8)
    with pytest.raises(FabricError, match="with 8 workers needs 8 GPUs, but torch finds 4"):
        await one.prepare()
    await one.close()
    one = pool(CHATTY, backend=Backend.NCCL)
    with pytest.raises(FabricError, match="torch finds 0"):
        await one.prepare()
    await one.close()
    assert not psutil.Process().children()


async def test_a_worker_that_does_not_start_says_why(pool):
    one = pool(DYING)
    with pytest.raises(FabricError, match=r"worker 0 did not start: .*exit code 1.*no room for"):
        await one.prepare()
    await one.close()


async def test_a_worker_that_is_killed_is_an_error(pool):
    one = pool(DYING_LATER)
    try:
        await one.prepare()
        ((_, report),) = await finish(one, 1)
    finally:
        await one.close()
    assert (report["event"], report["kind"]) == ("error", "exit")
    assert "killed by signal 9" in report["text"]
