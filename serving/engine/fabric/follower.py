"""Follower (any peer except 0): joins the leader, connects to the other peers, runs its jobs."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from serving.engine.fabric.diagnosis import LEADER, Loss
from serving.engine.fabric.facts import Facts
from serving.engine.fabric.link import Link, Message
from serving.engine.fabric.names import resolve
from serving.engine.fabric.neighbours import Mesh, Neighbours, attempts, watch
from serving.engine.fabric.plan import FabricError, Plan
from serving.engine.fabric.tasks import Jobs
from serving.engine.fabric.workers import Ready, WorkerPool

_LOOK_UP = 5.0
"""Timeout of a name lookup, seconds."""
_PAUSE = 0.5
"""Pause between attempts, seconds."""
_PROGRESS_INTERVAL = 5.0
"""Interval between progress lines, seconds."""
_VERDICT_GRACE = 3.0
"""Time to wait for the leader's verdict after this peer has failed or lost a peer, seconds."""

PrintLine = Callable[[str], None]


class Follower:
    """A follower's part in the check."""

    def __init__(
        self, plan: Plan, facts: Facts, workers: WorkerPool, print_line: PrintLine
    ) -> None:
        self._plan = plan
        self._facts = facts
        self._workers = workers
        self._print_line = print_line
        self._neighbours = Neighbours(plan.silence)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._alone = asyncio.Event()
        """Set when the leader is lost."""

    async def run(self, prepared: "asyncio.Task[Ready]") -> None:
        """Participate until the leader's verdict.

        Args:
            prepared: Preparation of this peer's workers.

        Raises:
            FabricError: The check failed; the message contains the reason.
        """
        deadline = time.monotonic() + self._plan.join_limit
        leader, mesh, port = await self._reach(deadline)
        leave_reason = "it is stopping"
        watching = None
        try:
            leader.send({"t": "hello", "facts": self._facts.as_message(), "port": port})
            self._neighbours.links[LEADER] = leader
            leader.start(self._inbox.put_nowait)
            watching = asyncio.create_task(watch(self._neighbours, self._on_loss))
            await self._participate(leader, mesh, prepared, deadline)
            leave_reason = ""
        except FabricError:
            leave_reason = ""
            raise
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            await mesh.close()
            await self._neighbours.close(leave_reason)

    async def _reach(self, deadline: float) -> tuple[Link, Mesh, int]:
        """Connect to the leader; retry until ``deadline``.

        Returns:
            The connection, the mesh for the other peers, and the port of the mesh.

        Raises:
            FabricError: The leader is unreachable.
        """
        host, port = self._plan.leader_host, self._plan.leader_port
        began = time.monotonic()
        last_printed = began - _PROGRESS_INTERVAL
        reason = "no response"
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + deadline - time.monotonic()
            ):
                while True:
                    try:
                        address = await resolve(host, _LOOK_UP)
                    except OSError as error:
                        reason = str(error)
                        await asyncio.sleep(_PAUSE)
                    else:
                        # Resolved for each attempt: a restarted pod has another address.
                        tried = await anext(attempts(address, port))
                        if isinstance(tried, Link):
                            mesh = Mesh(self._plan.index, tried.local_address, self._neighbours)
                            return tried, mesh, await mesh.open()
                        reason = tried
                        await asyncio.sleep(_PAUSE)
                    now = time.monotonic()
                    if now - last_printed >= _PROGRESS_INTERVAL:
                        last_printed = now
                        self._print_line(
                            f"waiting for the leader {host}:{port} ({now - began:.0f} s of "
                            f"{self._plan.join_limit:g} s): {reason}"
                        )
        except TimeoutError:
            raise FabricError(
                f"the leader (peer 0, {host}:{port}) did not respond within "
                f"{self._plan.join_limit:g} s: {reason}"
            ) from None

    async def _participate(
        self, leader: Link, mesh: Mesh, prepared: "asyncio.Task[Ready]", deadline: float
    ) -> None:
        self._print_line(
            f"reached the leader at {leader.remote_address}; waiting for the other peers"
        )
        table = await self._next("table", deadline - time.monotonic() + _VERDICT_GRACE)
        # From here on the leader enforces the same limits.
        deadline = time.monotonic() + self._plan.timeout / 2
        where = {
            int(index): (str(host), int(port)) for index, (host, port) in table["peers"].items()
        }
        for index, loss in (await mesh.connect(where, self._plan.silence)).items():
            self._neighbours.note(index, loss)
            self._report_loss(index, loss)
        if not self._neighbours.lost:
            self._print_line("reached every other peer")
            leader.send({"t": "meshed"})
        preparing = asyncio.create_task(self._prepare(leader, prepared))
        try:
            job = await self._next("job", deadline - time.monotonic())
            self._print_line("exchanging data")
            self._workers.start(self._jobs(leader, job), self._forward(leader))
            await self._next("verdict", deadline - time.monotonic())
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    async def _prepare(self, leader: Link, prepared: "asyncio.Task[Ready]") -> None:
        try:
            ready = await asyncio.shield(prepared)
        except (FabricError, OSError) as error:
            leader.send({"t": "failed", "text": str(error)})
            return
        leader.send({"t": "ready", "workers": ready.workers, "backend": ready.backend})

    def _jobs(self, leader: Link, job: Message) -> dict[int, dict[str, Any]]:
        jobs = Jobs(
            plan=self._plan,
            workers=int(job["workers"]),
            backend=str(job["backend"]),
            store_host=str(job["store_host"]),
            address=leader.local_address,
            variables=self._facts.variables,
        )
        return jobs.of(self._plan.index, int(job["store_port"]))

    def _forward(self, leader: Link) -> Callable[[int, Mapping[str, Any]], None]:
        return lambda worker, report: leader.send(
            {"t": "work", "worker": worker, "report": dict(report)}
        )

    async def _next(self, kind: str, limit: float) -> Message:
        """Return the leader's next message, whose type must be ``kind``.

        Raises:
            FabricError: The verdict arrived instead, the leader is lost, or no message arrived
                within ``limit`` seconds.
        """
        coming = asyncio.create_task(self._inbox.get())
        alone = asyncio.create_task(self._alone.wait())
        try:
            await asyncio.wait(
                {coming, alone}, timeout=max(limit, 0), return_when=asyncio.FIRST_COMPLETED
            )
            if not coming.done() and alone.done():
                # The verdict may still arrive: the leader sends it before it closes.
                await asyncio.wait({coming}, timeout=0.2)
            message = coming.result() if coming.done() else None
        finally:
            for task in (coming, alone):
                task.cancel()
            await asyncio.gather(coming, alone, return_exceptions=True)
        if message is None:
            if self._alone.is_set():
                raise FabricError(await self._lost_leader())
            raise FabricError(
                f"the leader (peer 0) did not send its {kind} message in time: see its log"
            )
        if message["t"] == "refused":
            raise FabricError(f"the leader rejected this peer: {message.get('text', '')}")
        if message["t"] == "verdict" and not message.get("ok"):
            raise FabricError(str(message.get("text", "")))
        if message["t"] != kind:
            raise FabricError(f"the leader sent {message['t']} instead of {kind}")
        return message

    def _on_loss(self, index: int, loss: Loss) -> None:
        if index == LEADER:
            self._alone.set()
        else:
            self._report_loss(index, loss)

    def _report_loss(self, index: int, loss: Loss) -> None:
        self._neighbours.links[LEADER].send(
            {"t": "lost", "peer": index, "kind": loss.kind, "detail": loss.detail}
        )

    async def _lost_leader(self) -> str:
        """Return a description of the leader's loss that considers the other peers."""
        loss = self._neighbours.lost[LEADER]
        if loss.kind == "silent":
            # A loss of the other peers is detected at about the same time.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_VERDICT_GRACE):
                    while self._neighbours.alive:  # noqa: ASYNC110  bounded above
                        await asyncio.sleep(_PAUSE)
        others = self._neighbours.links.keys() - {LEADER}
        # A peer that has closed its connection in the meantime was reachable.
        silent = {index for index, loss in self._neighbours.lost.items() if loss.kind == "silent"}
        reachable = sorted(others - silent)
        text = f"peer 0 (the leader, {self._plan.leader_host}) stopped responding: {loss.detail}"
        if loss.kind == "closed":
            text = (
                f"peer 0 (the leader, {self._plan.leader_host}) exited: {loss.detail}; see its log"
            )
        if loss.kind == "left":
            text = f"peer 0 (the leader) disconnected: {loss.detail}"
        if loss.kind != "silent":
            return text
        if reachable:
            listed = ", ".join(f"peer {index}" for index in reachable)
            return f"{text}; {listed} still responded: the leader's own cable or network is cut"
        if others:
            return f"{text}; no other peer responds either: this pod's own cable or network is cut"
        return f"{text}: the network between this pod and the leader is cut, or the leader hangs"
