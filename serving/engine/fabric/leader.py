"""Leader (peer 0): starts the exchange, collects the peers' reports, and decides the result."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.engine.fabric import diagnosis
from serving.engine.fabric.diagnosis import LEADER, Evidence, Failure, Loss
from serving.engine.fabric.facts import Facts
from serving.engine.fabric.link import BEAT, Message
from serving.engine.fabric.neighbours import Neighbours, watch
from serving.engine.fabric.plan import FabricError, Plan
from serving.engine.fabric.report import Findings, Measured
from serving.engine.fabric.roll_call import RollCall
from serving.engine.fabric.tasks import Jobs
from serving.engine.fabric.workers import Ready, WorkerPool

_SETTLE = 2.0
"""Time to wait for further reports after the first failure or loss, seconds."""

PrintLine = Callable[[str], None]


@dataclass(slots=True)
class _Progress:
    """Progress of all workers of all peers."""

    store_port: int = 0
    results: dict[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)
    printed: float = 0.0

    def due(self) -> bool:
        """Return whether a progress line is due; if so, record it as printed."""
        if self.last - self.printed < BEAT:
            return False
        self.printed = self.last
        return True


class Leader:
    """The leader's part in the check."""

    def __init__(
        self, plan: Plan, facts: Facts, workers: WorkerPool, print_line: PrintLine
    ) -> None:
        self._plan = plan
        self._facts = facts
        self._workers = workers
        self._print_line = print_line
        self._neighbours = Neighbours(plan.silence)
        self._roll_call = RollCall(plan, facts, self._neighbours, self._on_message, print_line)
        self._peers = self._roll_call.peers
        self._changed = asyncio.Event()
        self._progress = _Progress()
        self._seen = Evidence({})

    async def run(self, prepared: "asyncio.Task[Ready]") -> Findings:
        """Run the check; send the verdict to all reachable peers.

        Args:
            prepared: Preparation of this peer's workers.

        Raises:
            FabricError: The check failed; the message contains the reason.
        """
        verdict = "the leader is stopping"
        try:
            await self._roll_call.run()
            findings = await self._check(prepared)
            verdict = ""
        except FabricError as error:
            verdict = str(error)
            raise
        else:
            return findings
        finally:
            for link in self._neighbours.links.values():
                link.send({"t": "verdict", "ok": not verdict, "text": verdict})
            await self._neighbours.close()
            await self._roll_call.close()

    async def _check(self, prepared: "asyncio.Task[Ready]") -> Findings:
        """Connect all peers to each other, run the exchange, and return the measurements."""
        self._print_line(f"all {self._plan.peers} peers have joined; connecting them to each other")
        self._seen.names = {index: str(peer) for index, peer in self._peers.items()}
        table = {index: (peer.address, peer.port) for index, peer in self._peers.items()}
        self._broadcast(
            {"t": "table", "peers": {str(index): where for index, where in table.items()}}
        )
        watching = asyncio.create_task(watch(self._neighbours, self._on_loss))
        # Failures of the leader's workers are evidence like those of other peers' workers.
        own = asyncio.create_task(self._prepare(prepared))
        try:
            async with asyncio.timeout(self._plan.check_limit):
                await self._until(lambda: all(peer.meshed for peer in self._peers.values()))
                self._print_line("every pod reaches every other over TCP; waiting for the workers")
                await self._until(lambda: all(peer.ready for peer in self._peers.values()))
                jobs = self._jobs()
                self._seen.backend = jobs.backend
                self._print_line(f"exchanging data: {jobs.world} workers, {jobs.backend}")
                self._progress.last = time.monotonic()
                self._workers.start({0: jobs.of(LEADER, 0)[0]}, self._own_work)
                await self._until(lambda: self._progress.store_port > 0, stalls=True)
                self._broadcast(jobs.message(self._progress.store_port))
                own_jobs = jobs.of(LEADER, self._progress.store_port)
                del own_jobs[0]
                self._workers.start(own_jobs, self._own_work)
                await self._until(lambda: len(self._progress.results) == jobs.world, stalls=True)
        except TimeoutError:
            raise FabricError(self._unfinished()) from None
        finally:
            for task in (watching, own):
                task.cancel()
            await asyncio.gather(watching, own, return_exceptions=True)
        return self._findings(jobs)

    async def _prepare(self, prepared: "asyncio.Task[Ready]") -> None:
        try:
            self._peers[LEADER].ready = await asyncio.shield(prepared)
        except (FabricError, OSError) as error:
            self._seen.failures.append(Failure(LEADER, None, "peer", str(error)))
        self._changed.set()

    def _jobs(self) -> Jobs:
        """Return the workers' jobs.

        Raises:
            FabricError: The peers have different numbers of workers or different backends.
        """
        mine = self._peers[LEADER].ready
        assert mine is not None
        for index, peer in sorted(self._peers.items()):
            if peer.ready != mine:
                assert peer.ready is not None
                raise FabricError(
                    f"peer {index} ({peer.facts.name}) has {peer.ready.workers} workers on "
                    f"{peer.ready.backend}, peer 0 has {mine.workers} on {mine.backend}: all "
                    "pods of a group need the same GPUs"
                )
        return Jobs(
            plan=self._plan,
            workers=mine.workers,
            backend=mine.backend,
            store_host=self._peers[LEADER].address,
            address=self._peers[LEADER].address,
            variables=self._facts.variables,
        )

    async def _until(self, condition: Callable[[], bool], *, stalls: bool = False) -> None:
        """Wait until ``condition`` holds.

        Raises:
            FabricError: A worker failed, a peer was lost, or, with ``stalls``, no worker made
                progress for ``plan.stall`` seconds.
        """
        while not condition():
            if self._seen.failures or self._seen.losses:
                await self._settle()
                raise FabricError(diagnosis.diagnose(self._seen))
            idle = time.monotonic() - self._progress.last
            if stalls and idle >= self._plan.stall:
                self._seen.stalled = idle
                raise FabricError(diagnosis.diagnose(self._seen))
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._changed.wait()

    async def _settle(self) -> None:
        """Wait for further evidence from other peers."""
        if diagnosis.communication_failed(self._seen):
            # A connection error of a worker is weak evidence; wait for heartbeats to be missed.
            deadline = time.monotonic() + self._plan.silence + BEAT
            while time.monotonic() < deadline and not self._seen.losses:  # noqa: ASYNC110
                await asyncio.sleep(BEAT)
        await asyncio.sleep(_SETTLE)

    def _unfinished(self) -> str:
        limit = f"{self._plan.check_limit:g} s (half of --timeout)"
        apart = [index for index, peer in self._peers.items() if not peer.meshed]
        if apart:
            who = self._roll_call.names(apart)
            return f"{who} did not connect to the other peers within {limit}"
        late = [index for index, peer in self._peers.items() if peer.ready is None]
        if late:
            return f"the workers of {self._roll_call.names(late)} did not start within {limit}"
        return (
            f"not finished within {limit}, although data is transferred: lower --rounds or "
            f"--bytes, or raise --timeout; {diagnosis.position(self._seen)}"
        )

    def _on_message(self, peer: int, message: Message) -> None:
        """Handle a peer's message; malformed messages are ignored."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            self._handle(peer, message)
        self._changed.set()

    def _handle(self, peer: int, message: Message) -> None:
        match message["t"]:
            case "meshed":
                self._peers[peer].meshed = True
            case "ready":
                self._peers[peer].ready = Ready(int(message["workers"]), str(message["backend"]))
            case "lost":
                loss = Loss(str(message["kind"]), str(message["detail"]))
                self._seen.losses.setdefault((peer, int(message["peer"])), loss)
            case "failed":
                self._seen.failures.append(Failure(peer, None, "peer", str(message["text"])))
            case "work":
                self._work(peer, int(message["worker"]), message["report"])

    def _work(self, peer: int, worker: int, report: Mapping[str, Any]) -> None:
        self._progress.last = time.monotonic()
        match report["event"]:
            case "step":
                step = diagnosis.step_of(report)
                self._seen.steps[peer, worker] = step
                if worker == 0 and peer == LEADER and self._progress.due():
                    self._print_line(step.text)
            case "store":
                self._progress.store_port = int(report["port"])
            case "result":
                self._progress.results[peer, worker] = report
            case "error":
                failure = Failure(peer, worker, str(report["kind"]), str(report["text"]))
                self._seen.failures.append(failure)
        self._changed.set()

    def _own_work(self, worker: int, report: Mapping[str, Any]) -> None:
        self._work(LEADER, worker, report)

    def _on_loss(self, peer: int, loss: Loss) -> None:
        self._seen.losses.setdefault((LEADER, peer), loss)
        self._changed.set()

    def _broadcast(self, message: Message) -> None:
        for link in self._neighbours.links.values():
            link.send(message)

    def _findings(self, jobs: Jobs) -> Findings:
        return Findings(
            backend=jobs.backend,
            workers=jobs.workers,
            size=self._plan.size,
            rounds=self._plan.rounds,
            facts={index: peer.facts for index, peer in sorted(self._peers.items())},
            addresses={index: peer.address for index, peer in self._peers.items()},
            measured={
                who: Measured.of_report(report)
                for who, report in sorted(self._progress.results.items())
            },
        )
