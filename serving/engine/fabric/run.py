"""Run of the check on one peer, including the cleanup of its worker processes."""

import asyncio
import signal
from collections.abc import Callable

from serving.engine.fabric.diagnosis import LEADER
from serving.engine.fabric.facts import Facts
from serving.engine.fabric.follower import Follower
from serving.engine.fabric.leader import Leader
from serving.engine.fabric.plan import FabricError, Plan
from serving.engine.fabric.report import Findings
from serving.engine.fabric.workers import Ready, WorkerPool

_AFTERWARDS = 3.0
"""Time after --timeout for the last messages and the end of the workers, seconds."""

PrintLine = Callable[[str], None]


async def run_peer(
    plan: Plan, facts: Facts, workers: WorkerPool, print_line: PrintLine
) -> Findings | None:
    """Participate in the check as peer ``plan.index``.

    Returns:
        The findings on peer 0; ``None`` on other peers.

    Raises:
        FabricError: The check failed.
        asyncio.CancelledError: The run was cancelled.
    """
    prepared: asyncio.Task[Ready] = asyncio.create_task(workers.prepare())
    # Mark the exception as retrieved: the task may never be awaited elsewhere.
    prepared.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        async with asyncio.timeout(plan.timeout):
            if plan.index == LEADER:
                return await Leader(plan, facts, workers, print_line).run(prepared)
            await Follower(plan, facts, workers, print_line).run(prepared)
            return None
    except TimeoutError:
        raise FabricError(f"the check did not finish within --timeout {plan.timeout:g} s") from None
    finally:
        prepared.cancel()
        await asyncio.gather(prepared, return_exceptions=True)
        await workers.close()


def run_until_stopped(
    plan: Plan, facts: Facts, workers: WorkerPool, print_line: PrintLine
) -> Findings | None:
    """Run ``run_peer``; SIGTERM and SIGINT stop it gracefully.

    Raises:
        FabricError: The check failed.
        KeyboardInterrupt: A signal stopped the check.
    """
    stopped: list[int] = []

    async def main() -> Findings | None:
        task = asyncio.ensure_future(run_peer(plan, facts, workers, print_line))
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            stopped.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if stopped:
            raise KeyboardInterrupt from None
        raise
