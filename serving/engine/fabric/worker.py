"""Worker of the check: a process with torch and, if available, a GPU.

    python -m serving.engine.fabric.worker PARENT_PID

The worker writes ``ready`` to standard output and reads its job from standard input. It reports
each step as a JSON line before the step begins, so the parent knows which step hangs. The kernel
kills the worker when its parent dies.
"""

import ctypes
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import util
from pathlib import Path
from typing import Any

from serving.engine.fabric.exchange import Contents
from serving.engine.fabric.plan import pairings

_PR_SET_PDEATHSIG = 1
_WORD = 4
_WARM_UP = 2**18
"""Number of words of the first message between two workers, which also establishes the
connection."""
_NETWORK = re.compile(r"Using network (\S+)")
"""Log line of NCCL about the selected network."""

_NOISE = re.compile(r"^\[\S+:\d+\] | ?This is typically caused by .*")

SendReport = Callable[..., None]


class WrongContents(Exception):
    """The received data differ from the sent data."""


class Exchange:
    """Steps of one worker in an initialized process group."""

    def __init__(
        self, job: Mapping[str, Any], collectives: Any, device: str, send_report: SendReport
    ) -> None:
        self._dist = collectives
        self._device = device
        self._send_report = send_report
        self._rank: int = job["rank"]
        self._world: int = job["world"]
        self._workers: int = job["workers"]
        self._peers = self._world // self._workers
        self._words = max(1, job["size"] // _WORD)
        self._rounds: int = job["rounds"]
        self._ordinal = 1
        self.checked = 0
        """Number of bytes received and verified."""

    def pairs(self) -> dict[int, float]:
        """Exchange data with the corresponding worker of every other peer, one after the other.

        Returns:
            Bytes per second received by peer, while the same amount was sent to the peer.
        """
        me, place = divmod(self._rank, self._workers)
        rates = {}
        small = Contents(min(_WARM_UP, self._words), self._device)
        large = Contents(self._words, self._device)
        for number, meeting in enumerate(pairings(self._peers)):
            partner = meeting.get(me)
            if partner is None:
                continue
            self._step(f"exchange with peer {partner}", partner)
            other = partner * self._workers + place
            self._swap(small, other, 2 * number)
            seconds = self._swap(large, other, 2 * number + 1)
            rates[partner] = self._words * _WORD / max(seconds, 1e-9)
        return rates

    def all_to_all(self) -> list[float]:
        """Run the all-to-all rounds; return their durations in seconds."""
        import torch

        share = max(1, self._words // self._world)
        contents = Contents(share, self._device)
        seconds = []
        for number in range(self._rounds):
            self._step(f"all-to-all, round {number + 1} of {self._rounds}", None)
            out = torch.cat(
                [contents.make(self._rank, target, number) for target in range(self._world)]
            )
            into = torch.zeros_like(out)
            self._synchronize()
            began = time.monotonic()
            self._dist.all_to_all_single(into, out)
            self._synchronize()
            seconds.append(time.monotonic() - began)
            for source, part in enumerate(into.split(share)):
                self._check(contents, part, source, number)
        return seconds

    def _swap(self, contents: Contents, other: int, number: int) -> float:
        """Exchange and verify contents; return the duration of the exchange alone in seconds."""
        import torch

        out = contents.make(self._rank, other, number)
        into = torch.zeros_like(out)
        operations = [
            self._dist.P2POp(self._dist.isend, out, other),
            self._dist.P2POp(self._dist.irecv, into, other),
        ]
        self._synchronize()
        began = time.monotonic()
        for work in self._dist.batch_isend_irecv(operations):
            work.wait()
        self._synchronize()
        seconds = time.monotonic() - began
        self._check(contents, into, other, number)
        return seconds

    def _check(self, contents: Contents, received: Any, source: int, number: int) -> None:
        wrong = contents.wrong(received, source, self._rank, number)
        if wrong is not None:
            count, place = wrong
            peer, worker = divmod(source, self._workers)
            raise WrongContents(
                f"{count} of {received.numel()} words from worker {worker} of peer {peer} differ "
                f"from what it sent, the first at byte {place}"
            )
        self.checked += received.numel() * _WORD

    def _step(self, text: str, partner: int | None) -> None:
        self._ordinal += 1
        self._send_report(event="step", ordinal=self._ordinal, text=text, partner=partner)

    def _synchronize(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()


def main() -> int:
    """Run one job; return 0 if all contents are correct, otherwise 1."""
    _end_with_parent(int(sys.argv[1]))
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _send_report(event="ready", gpus=gpus)
    line = sys.stdin.readline()
    if not line:
        return 1
    job = json.loads(line)
    try:
        _run(job)
    except WrongContents as error:
        _send_report(event="error", kind="contents", text=str(error))
        return 1
    except Exception as error:  # noqa: BLE001  the parent reports any error
        _send_report(
            event="error", kind="group", text=f"{type(error).__name__}: {first_line(error)}"
        )
        return 1
    return 0


def _run(job: Mapping[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(job["environment"])
    cuda = job["backend"] == "nccl"
    device = f"cuda:{job['rank'] % job['workers']}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    with tempfile.TemporaryDirectory(prefix="moe-fabric-") as folder:
        notes = Path(folder) / "nccl.log"
        if cuda:
            os.environ |= {
                "NCCL_DEBUG": "INFO",
                "NCCL_DEBUG_SUBSYS": "INIT,NET",
                "NCCL_DEBUG_FILE": str(notes),
            }
        _send_report(event="step", ordinal=1, text="create the process group", partner=None)
        dist.init_process_group(
            job["backend"],
            store=_store(job, dist),
            rank=job["rank"],
            world_size=job["world"],
            timeout=timedelta(seconds=job["limit"]),
            # NCCL's communicator must exist before a subset of the workers exchanges data.
            device_id=torch.device(device) if cuda else None,
        )
        exchange = Exchange(job, dist, device, _send_report)
        rates = exchange.pairs()
        seconds = exchange.all_to_all()
        _send_report(event="step", ordinal=10**6, text="start DeepEP and NVSHMEM", partner=None)
        _send_report(
            event="result",
            rates=rates,
            seconds=statistics.median(seconds),
            checked=exchange.checked,
            network=network_of(notes),
            deep_ep=_deep_ep(job, dist, cuda=cuda),
        )
        # Keep connections open until no worker reads from them.
        dist.barrier()
        dist.destroy_process_group()


def _store(job: Mapping[str, Any], dist: Any) -> Any:
    """Return the group's key-value store; rank 0 hosts the store and reports its port."""
    import socket

    host, port, descriptor = job["store_host"], job["store_port"], None
    if job["rank"] == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=1024)
        port = listener.getsockname()[1]
        descriptor = listener.detach()
    store = dist.TCPStore(
        host,
        port,
        job["world"],
        is_master=job["rank"] == 0,
        timeout=timedelta(seconds=job["limit"]),
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
    if job["rank"] == 0:
        _send_report(event="store", port=port)
    return store


def network_of(notes: Path) -> str:
    """Return the network in NCCL's log (IB, Socket, …); empty if there is none."""
    try:
        found = _NETWORK.findall(notes.read_text("utf-8", errors="replace"))
    except OSError:
        return ""
    return str(found[-1]) if found else ""


def _deep_ep(job: Mapping[str, Any], dist: Any, *, cuda: bool) -> str:
    """Start and stop DeepEP over NVSHMEM; return a text for the report."""
    if util.find_spec("deep_ep") is None:
        return "not checked: not installed"
    if not cuda:
        return "not checked: no GPU"
    import deep_ep  # type: ignore[import-not-found]
    import torch

    world = job["world"]
    # Minimum size of the low-latency kernels: only the start of NVSHMEM is tested.
    size = deep_ep.Buffer.get_low_latency_rdma_size_hint(8, 2048, world, world)
    buffer = deep_ep.Buffer(
        dist.group.WORLD,
        num_rdma_bytes=size,
        low_latency_mode=True,
        num_qps_per_rank=1,
        explicitly_destroy=True,
    )
    torch.cuda.synchronize()
    dist.barrier()
    buffer.destroy()
    return "started"


def first_line(error: Exception) -> str:
    """Return the first line of a library's error without source location and generic advice."""
    first = next((text for text in str(error).splitlines() if text.strip()), "")
    return _NOISE.sub("", first).strip()


def _send_report(**report: Any) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
