"""Two gloo processes that test collectives, forked after the imports; run by test_cpu_plugin.py."""

import os
import random
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from serving.engine.cpu_plugin import collectives, sockets
from serving.engine.cpu_plugin.node_exchange import groups

WORLD = 2


def main(rank: int, store: str) -> None:
    sockets.install()
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, WORLD),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=300),
    )
    over_gloo = ragged(rank, None)
    collectives.self_check(over_gloo)
    shared = ragged(rank, dist.group.WORLD)
    groups.join(shared)
    assert groups.exchange_of(shared.device_group) is not None
    collectives.self_check(shared)
    rounds = 40
    random.seed(0)  # the same sizes in both processes
    for number in range(rounds):
        dtype = (torch.float32, torch.bfloat16)[number % 2]
        sizes = [random.randint(1, 9), random.randint(1, 9)] if number % 5 else [3, 3]
        width, k = random.choice([1, 8, 33]), random.randint(1, 4)
        everyone = [tensors(number, other, sizes[other], width, k, dtype) for other in range(2)]
        for group in (over_gloo, shared):
            check_gather(group, everyone, sizes, uniform=not number % 5)
            check_scatter(group, number, sizes, width, dtype)
        check_sums(number, rank)
    check_groups(rank)
    dist.destroy_process_group()
    sys.stdout.write(f"{rounds} rounds\n")


def ragged(rank, group):
    """The part of a communicator that the collectives need, over a torch.distributed group."""
    made = SimpleNamespace(
        world_size=WORLD,
        rank_in_group=rank,
        cpu_group=group,
        device_group=group,
        unique_name="ep:0",
    )
    made.all_gatherv = lambda *a, **k: collectives.all_gatherv(made, *a, **k)
    made.reduce_scatterv = lambda *a, **k: collectives.reduce_scatterv(made, *a, **k)
    return made


def tensors(number, rank, rows, width, k, dtype):
    """Hidden states, routing weights and expert ids of one rank, as vLLM dispatches them."""
    generator = torch.Generator().manual_seed(number * 10 + rank)
    return [
        torch.randn(rows, width, generator=generator).to(dtype),
        torch.rand(rows, k, generator=generator),
        torch.randint(0, 99, (rows, k), generator=generator, dtype=torch.int32),
        torch.randint(0, 99, (rows,), generator=generator),
    ]


def check_groups(rank):
    """Several groups, as created by vLLM, with different traffic, on one thread's sockets."""
    groups = [dist.new_group(backend="gloo") for _ in range(3)]
    alone = [dist.new_group([one], backend="gloo") for one in range(WORLD)][rank]
    pending = []
    for number, group in enumerate(groups):
        sums = torch.full((1000,), 10.0**number * (rank + 1))
        pending.append((sums, 3 * 10.0**number, dist.all_reduce(sums, group=group, async_op=True)))
    for sums, want, work in pending:
        work.wait()
        assert bool((sums == want).all())
    dist.barrier(alone)
    if sys.platform == "linux":
        names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
        assert names.count("gloo_tcp_loop") == 1, names


def check_gather(group, everyone, sizes, *, uniform):
    mine = everyone[group.rank_in_group]
    got = group.all_gatherv(mine, dim=0, sizes=None if uniform else sizes)
    for index, tensor in enumerate(got):
        want = torch.cat([other[index] for other in everyone])
        assert tensor.dtype == want.dtype
        assert torch.equal(tensor, want)
    alone = group.all_gatherv(mine[0], 0, sizes)
    assert torch.equal(alone, torch.cat([other[0] for other in everyone]))


def check_sums(number, rank):
    """The token counts of a step, as vLLM sums them."""
    counts = torch.zeros(4, WORLD, dtype=torch.int32)
    counts[:, rank] = number + rank
    want = counts.clone()
    dist.all_reduce(want)
    groups._Distributed().all_reduce(counts, group=dist.group.WORLD)
    assert torch.equal(counts, want)


def check_scatter(group, number, sizes, width, dtype):
    parts = [
        torch.randn(
            sum(sizes),
            width,
            generator=torch.Generator().manual_seed(1000 + number * 10 + rank),
        ).to(dtype)
        for rank in range(2)
    ]
    got = group.reduce_scatterv(parts[group.rank_in_group], dim=0, sizes=sizes)
    want = (parts[0].float() + parts[1].float()).to(dtype).split(sizes)[group.rank_in_group]
    assert torch.equal(got, want)


def forked(rank: int, store: str) -> int:
    """Run a rank in a child process; return the process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        main(rank, store)
        code = 0
    except BaseException:  # noqa: BLE001  printed, and the parent's code does not run here
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    ranks = [forked(rank, sys.argv[1]) for rank in range(WORLD)]
    statuses = [os.waitpid(rank, 0)[1] for rank in ranks]
    sys.exit(any(statuses))
