"""All ranks of a group use shared memory, or none do."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest

from serving.engine.cpu_plugin.node_exchange import agreement
from serving.engine.cpu_plugin.node_exchange.agreement import ExchangeRefused, Wish, agree
from serving.engine.cpu_plugin.node_exchange.support import why_not_here
from serving.engine.environment import engine_environment
from serving.settings import Settings
from tests.support.waiting import PATIENCE


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


class Ranks:
    """Stands in for torch.distributed: the ranks are threads of this process."""

    def __init__(self, world):
        self.world = world
        self._meet = Barrier(world)
        self._said = [None] * world

    def get_rank(self, group):
        return group.rank

    def get_world_size(self, group):
        return self.world

    def all_gather_object(self, found, mine, group):
        self._said[group.rank] = mine
        self._meet.wait(PATIENCE)
        found[:] = self._said
        self._meet.wait(PATIENCE)


@pytest.fixture
def together(monkeypatch):
    """Let ranks with these settings agree; return each rank's exchange and reason, or its error."""

    def run(*wishes):
        monkeypatch.setattr(agreement, "dist", Ranks(len(wishes)))

        def one(rank):
            try:
                return agree(SimpleNamespace(rank=rank), wishes[rank], PATIENCE)
            except ExchangeRefused as error:
                return error.with_traceback(None)  # it refers to the memory

        with ThreadPoolExecutor(len(wishes)) as pool:
            return list(pool.map(one, range(len(wishes)), timeout=PATIENCE))

    return run


@pytest.mark.parametrize("mode", ["auto", "shared_memory"])
def test_ranks_of_one_node_share_memory(together, mode):
    before = open_files()
    agreed = together(*[Wish(mode)] * 3)
    assert [reason for _, reason in agreed] == [""] * 3
    exchanges = [exchange for exchange, _ in agreed]
    assert all(exchange is not None for exchange in exchanges)
    for exchange in exchanges:
        exchange.close()
    del agreed, exchanges, exchange
    assert open_files() == before


@pytest.mark.parametrize(
    ("where", "replacement", "reason"),
    [
        pytest.param("why_not_here", lambda: "no memfd", "no memfd", id="unsupported"),
        pytest.param(
            "_node",
            ["node-a pid:[1]", "node-b pid:[1]"],
            "its ranks are on 2 nodes",
            id="two-nodes",
        ),
        pytest.param(
            "OwnedSegment", lambda size: os.open("/nowhere", 0), "no shared memory", id="no-memory"
        ),
        pytest.param(
            "attach",
            lambda offer: os.open("/nowhere", 0),
            "rank 1 cannot share memory with the others",
            id="not-attached",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "shared_memory"])
def test_one_rank_that_cannot_is_enough_for_all(
    together, monkeypatch, where, replacement, reason, mode
):
    if isinstance(replacement, list):
        replacement = iter(replacement).__next__
    monkeypatch.setattr(agreement, where, replacement)
    before = open_files()
    agreed = together(Wish(mode), Wish(mode))
    if mode == "auto":
        assert [exchange for exchange, _ in agreed] == [None, None]
        assert all(reason in why for _, why in agreed)
    else:
        assert all(isinstance(error, ExchangeRefused) and reason in str(error) for error in agreed)
    assert open_files() == before


def test_one_rank_set_to_gloo_decides_for_all(together):
    agreed = together(Wish("auto"), Wish("gloo"))
    assert agreed == [(None, "engine.exchange is gloo")] * 2
    refused = together(Wish("shared_memory"), Wish("gloo"))
    assert all(isinstance(error, ExchangeRefused) for error in refused)


def test_this_machine_supports_it():
    assert why_not_here() == ""


def test_a_node_is_a_machine_and_its_namespaces():
    """Network namespaces represent nodes in tests, and each pod has one."""
    boot, pids, network = agreement._node().split()
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (pids[:5], network[:5]) == ("pid:[", "net:[")


def test_other_processors_use_gloo(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "aarch64" in why_not_here()


def test_a_kernel_that_forbids_memfd_is_named(monkeypatch):
    def forbidden(*_):
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    assert "not permitted" in why_not_here()


def test_the_settings_reach_the_plugin():
    settings = Settings(engine={"exchange": "gloo", "exchange_spin_us": 70})
    wish = Wish.of(engine_environment(settings))
    assert wish == Wish("gloo", pytest.approx(70e-6))
    assert Wish.of({}) == Wish("auto", 0.0)
