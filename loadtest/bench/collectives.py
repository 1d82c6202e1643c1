"""``python -m loadtest.bench.collectives``: compares exchange over gloo and shared memory.

Each rank is a process that computes for a while, then gathers the rows of an MoE layer of pocket-r1
and reduce-scatters the results, as the CPU plugin does. All variants run alternately in the same
processes, on idle cores and with a busy process per core. Prints a table.
"""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from loadtest.bench.machine import describe
from serving.engine.environment import EXCHANGE, EXCHANGE_SPIN_US
from serving.flags.parser import FlagParser
from serving.flags.values import COUNT, CommaSeparated

_TIMEOUT = 60.0
_HIDDEN, _EXPERTS = 128, 4
"""Row width and number of experts per token of pocket-r1."""
_ROWS = (8, 32)
_WORK = (0, 1000)
"""Computation between two layers, microseconds."""
_ROUNDS = 3

Times = dict[tuple[str, int, int], tuple[list[float], float]]
"""Duration of each call and CPU time of the rank per call, microseconds, excluding computation;
by variant, rows per rank and computation."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--ranks", type=COUNT, default=2, help="ranks of the group (default 2)")
    parser.add_argument("--calls", type=COUNT, default=300, help="calls per round (default 300)")
    parser.add_argument(
        "--spins",
        type=CommaSeparated(int),
        default=[0, 20, 50, 200, 1000],
        help="values of engine.exchange_spin_us (default 0,20,50,200,1000)",
    )
    options = parser.parse_args(arguments)
    machine = describe()
    print(f"{machine['cores']} cores ({machine['cpu']}), load {machine['load_average_before'][0]}")
    variants: dict[str, Mapping[str, str]] = {"gloo": {EXCHANGE: "gloo"}}
    for spin in options.spins:
        variants[f"spin {spin}"] = {EXCHANGE: "shared_memory", EXCHANGE_SPIN_US: str(spin)}
    print("\n| cores | rows | computation µs | exchange | p50 µs | p90 | p99 | CPU µs |")
    print("|---|---|---|---|---|---|---|---|")
    for cores, busy in (("idle", 0), ("busy", os.cpu_count() or 1)):
        with _neighbours(busy):
            times = _measured(options.ranks, variants, options.calls)
        for (variant, rows, work), (latencies, cpu) in sorted(
            times.items(), key=lambda item: item[0][1:]
        ):
            cuts = statistics.quantiles(latencies, n=100)
            print(
                f"| {cores} | {rows} | {work} | {variant} "
                f"| {cuts[49]:.0f} | {cuts[89]:.0f} | {cuts[98]:.0f} | {cpu:.0f} |"
            )


def _measured(world: int, variants: Mapping[str, Mapping[str, str]], calls: int) -> Times:
    """Run all ranks; return the times of the first rank."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="moe-serving-bench-") as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, world, folder, variants, calls, theirs))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        theirs.close()
        try:
            times: Times = mine.recv()
        finally:
            for rank in ranks:
                rank.join(_TIMEOUT)
                rank.kill()
    return times


def _rank(
    rank: int,
    world: int,
    folder: str,
    variants: Mapping[str, Mapping[str, str]],
    calls: int,
    results: Connection,
) -> None:
    """Run one rank; the first one sends its times."""
    import torch
    import torch.distributed as dist

    from serving.engine.cpu_plugin import collectives, sockets
    from serving.engine.cpu_plugin.node_exchange import groups, time_slice

    torch.set_num_threads(1)
    sockets.install()
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(Path(folder) / "store"), world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=_TIMEOUT),
    )
    layers: dict[str, Callable[[int], None]] = {}
    for name, environment in variants.items():
        os.environ.update(environment)
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_TIMEOUT))
        communicator = SimpleNamespace(
            world_size=world,
            rank_in_group=rank,
            cpu_group=group,
            device_group=group,
            unique_name=name,
        )
        groups.join(communicator)
        layers[name] = _layer(collectives, communicator, torch)
    times: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    used: dict[tuple[str, int, int], float] = defaultdict(float)
    for _, rows, work, name in itertools.product(range(_ROUNDS), _ROWS, _WORK, variants):
        dist.barrier()
        layer, case = layers[name], (name, rows, work)
        shared = variants[name][EXCHANGE] == "shared_memory"
        time_slice.request(time_slice.SHORTEST if shared else time_slice.DEFAULT)
        for _ in range(calls):
            _compute(work)
            before = time.process_time()  # of all threads, including gloo's
            started = time.perf_counter()
            layer(rows)
            times[case].append((time.perf_counter() - started) * 1e6)
            used[case] += (time.process_time() - before) * 1e6
    if rank == 0:
        results.send({case: (each, used[case] / len(each)) for case, each in times.items()})
    dist.barrier()
    dist.destroy_process_group()


def _layer(collectives: Any, communicator: Any, torch: Any) -> Callable[[int], None]:
    """Return a function that runs the collectives of one MoE layer with the given rows per rank."""
    world = communicator.world_size
    inputs = {
        rows: (
            [
                torch.randn(rows, _HIDDEN),
                torch.rand(rows, _EXPERTS),
                torch.zeros(rows, _EXPERTS, dtype=torch.int32),
            ],
            torch.randn(rows * world, _HIDDEN),
        )
        for rows in _ROWS
    }

    def layer(rows: int) -> None:
        tensors, partial = inputs[rows]
        collectives.all_gatherv(communicator, tensors, 0, [rows] * world)
        collectives.reduce_scatterv(communicator, partial, 0, [rows] * world)

    return layer


def _compute(microseconds: int) -> None:
    """Use the CPU for a while; time without a core does not count."""
    end = time.thread_time() + microseconds * 1e-6
    while time.thread_time() < end:
        pass


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
