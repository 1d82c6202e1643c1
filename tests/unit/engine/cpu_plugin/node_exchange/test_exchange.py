"""Collectives through shared memory: ranks are threads here, except where a process must die."""

import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.engine.cpu_plugin.node_exchange import futex
from serving.engine.cpu_plugin.node_exchange.arrivals import PeerLost
from serving.engine.cpu_plugin.node_exchange.exchange import NodeExchange, segment_bytes
from serving.engine.cpu_plugin.node_exchange.segment import OwnedSegment, attach
from tests.support.waiting import PATIENCE

SMALL = 1024
"""A buffer that many of the tensors below exceed, so that they are exchanged in parts."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.uint8]


@contextmanager
def group(world, *, buffer_bytes=SMALL, spin=0.0, timeout=PATIENCE, pids=None):
    """One exchange per rank, each with a separate mapping."""
    pids = pids or [os.getpid()] * world
    owned = OwnedSegment(segment_bytes(world, buffer_bytes))
    ranks = [
        NodeExchange(segment, rank, pids, spin=spin, timeout=timeout, buffer_bytes=buffer_bytes)
        for rank, segment in enumerate([owned, *(attach(owned.offer) for _ in range(world - 1))])
    ]
    owned.withdraw()
    yield ranks
    for rank in ranks:
        rank.close()


def on_all(ranks, call):
    """Run ``call(rank, exchange)`` for all ranks at the same time; return the results by rank."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        running = [pool.submit(call, rank, exchange) for rank, exchange in enumerate(ranks)]
        return [one.result(PATIENCE) for one in running]


def values(seed, rows, width, dtype):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(rows, *width, generator=generator).to(dtype)
    return torch.randint(0, 200, (rows, *width), generator=generator).to(dtype)


WIDTHS = st.sampled_from([(), (1,), (4,), (33,), (2, 3)])


@st.composite
def rounds(draw):
    """Collectives of one group: kind, sizes by rank, width and dtype of each tensor."""
    world = draw(st.integers(2, 4))
    sizes = st.lists(st.integers(0, 40), min_size=world, max_size=world)
    gather = st.tuples(
        st.just("gather"),
        sizes,
        st.lists(st.tuples(WIDTHS, st.sampled_from(DTYPES)), min_size=1, max_size=4),
    )
    floats = st.tuples(WIDTHS, st.sampled_from(DTYPES[:3]))
    scatter = st.tuples(st.just("scatter"), sizes, st.lists(floats, min_size=1, max_size=1))
    whole = st.tuples(WIDTHS, st.sampled_from(DTYPES[3:5]))
    total = st.tuples(st.just("sum"), sizes, st.lists(whole, min_size=1, max_size=1))
    return world, draw(st.lists(st.one_of(gather, scatter, total), min_size=1, max_size=5))


@hypothesis_settings(max_examples=60, deadline=None)
@given(case=rounds(), spin=st.sampled_from([0.0, 50e-6]))
def test_every_collective_equals_torch(case, spin):
    world, collectives = case

    def run(rank, exchange):
        return [one(rank, exchange, index, *what) for index, what in enumerate(collectives)]

    def one(rank, exchange, index, kind, sizes, kinds):
        if kind == "gather":
            mine = [
                values(100 * index + 10 * rank + place, sizes[rank], *what)
                for place, what in enumerate(kinds)
            ]
            return exchange.gather(mine, sizes)
        rows = 3 if kind == "sum" else sum(sizes)
        mine = values(100 * index + rank, rows, *kinds[0])
        return exchange.sum(mine) if kind == "sum" else exchange.reduce_scatter(mine, sizes)

    with group(world, spin=spin) as ranks:
        results = on_all(ranks, run)
    for index, (kind, sizes, kinds) in enumerate(collectives):
        for rank in range(world):
            got = results[rank][index]
            if kind == "gather":
                for place, what in enumerate(kinds):
                    everyone = [
                        values(100 * index + 10 * other + place, sizes[other], *what)
                        for other in range(world)
                    ]
                    assert_same(got[place], torch.cat(everyone))
                continue
            rows = 3 if kind == "sum" else sum(sizes)
            parts = [values(100 * index + other, rows, *kinds[0]) for other in range(world)]
            if kind == "sum":
                assert_same(got, torch.stack(parts).sum(0, dtype=parts[0].dtype))
            else:
                # In rank order and float32, as over gloo.
                want = parts[0].float()
                for part in parts[1:]:
                    want = want + part.float()
                assert_same(got, want.to(parts[0].dtype).split(sizes)[rank])


def assert_same(got, want):
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_results_outlive_the_collectives_that_follow():
    with group(2) as ranks:

        def run(rank, exchange):
            kept = [
                exchange.gather([torch.full((1, 4), 10.0 * n + rank)], [1, 1]) for n in range(5)
            ]
            return [gathered[0][:, 0].tolist() for gathered in kept]

        assert on_all(ranks, run) == [[[10.0 * n, 10.0 * n + 1] for n in range(5)]] * 2


def test_the_sequence_number_wraps():
    with group(2) as ranks:
        for exchange in ranks:
            arrivals = exchange._arrivals
            arrivals.number = 2**32 - 2
            arrivals._words[arrivals._first + exchange._rank * 16] = 2**32 - 2

        def run(rank, exchange):
            return [int(exchange.sum(torch.tensor([rank + n]))) for n in range(4)]

        assert on_all(ranks, run) == [[1, 3, 5, 7]] * 2
        assert ranks[0]._arrivals.number == 2


def test_a_slow_rank_is_waited_for_and_wakes_the_others(monkeypatch):
    asleep, sleep = threading.Semaphore(0), futex.wait

    def wait(address, value, timeout):
        asleep.release()
        sleep(address, value, PATIENCE)  # only a wake-up ends it

    monkeypatch.setattr(futex, "wait", wait)
    with group(3) as ranks:

        def run(rank, exchange):
            if rank == 2:
                for _ in range(2):
                    assert asleep.acquire(timeout=PATIENCE)
            return exchange.gather([torch.full((1, 1), float(rank))], [1, 1, 1])[0].flatten()

        assert [each.tolist() for each in on_all(ranks, run)] == [[0.0, 1.0, 2.0]] * 3


def test_a_rank_that_never_arrives_ends_the_wait():
    with (
        group(2, timeout=0.01) as ranks,
        pytest.raises(PeerLost, match=r"rank 1 did not arrive within 0\.01 s"),
    ):
        ranks[0].sum(torch.ones(1))


def exchange_forever(exchange):
    while True:
        exchange.gather([torch.ones(2, 8)], [2, 2])


def test_a_killed_process_ends_the_wait_of_the_others():
    """The child exchanges tokens in an endless loop, in which it is killed."""
    owned = OwnedSegment(segment_bytes(2, SMALL))
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside hypothesis's threads
        child = os.fork()
    rows = torch.ones(2, 8)
    if child == 0:
        try:
            other = NodeExchange(
                owned, 1, [parent, os.getpid()], spin=0.0, timeout=PATIENCE, buffer_bytes=SMALL
            )
            exchange_forever(other)
        finally:
            os._exit(1)
    try:
        exchange = NodeExchange(
            owned, 0, [parent, child], spin=50e-6, timeout=PATIENCE, buffer_bytes=SMALL
        )
        for _ in range(3):
            assert torch.equal(exchange.gather([rows], [2, 2])[0], torch.ones(4, 8))
        os.kill(child, signal.SIGKILL)
        with pytest.raises(PeerLost, match=f"process {child} of rank 1 has ended"):
            exchange_forever(exchange)
        exchange.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        owned.withdraw()


def test_ranks_that_disagree_about_the_size_are_refused():
    with group(2) as ranks:

        def run(rank, exchange):
            with pytest.raises(RuntimeError, match="disagree"):
                exchange.gather([torch.ones(1, 3 + rank)], [1, 1])

        on_all(ranks, run)


@pytest.mark.parametrize(
    "call",
    [
        lambda exchange: exchange.gather([torch.ones(1, SMALL)], [1, 1]),
        lambda exchange: exchange.reduce_scatter(torch.ones(2, SMALL), [1, 1]),
    ],
    ids=["gather", "scatter"],
)
def test_a_row_larger_than_the_buffer_is_refused(call):
    with group(2) as ranks, pytest.raises(ValueError, match="exceed the buffer of 1024"):
        call(ranks[0])


def test_a_shape_first_seen_in_inference_mode_works_outside_of_it():
    with group(2) as ranks:

        def run(rank, exchange):
            with torch.inference_mode():
                inside = exchange.reduce_scatter(torch.ones(2, 4), [1, 1])
            return inside, exchange.reduce_scatter(torch.ones(2, 4), [1, 1])

        for inside, outside in on_all(ranks, run):
            assert torch.equal(inside, torch.full((1, 4), 2.0))
            assert torch.equal(outside, inside)


def test_many_shapes_do_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr("serving.engine.cpu_plugin.node_exchange.exchange._KEPT", 3)
    with group(2) as ranks:

        def run(rank, exchange):
            for width in range(1, 9):
                exchange.sum(torch.ones(width))
            return len(exchange._places)

        assert on_all(ranks, run) == [2, 2]
