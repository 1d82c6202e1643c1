"""Adapters on a rank: loading before the first request, eviction, waiting, and failures."""

import asyncio
import shutil

import pytest

from serving.clock import SystemClock
from serving.engine.adapters import RankAdapters
from serving.errors import EngineError, SettingsError
from serving.link.adapter_files import AdapterBase, AdapterError, check_adapter
from serving.link.v1 import link_pb2
from serving.settings import BUNDLED_MODEL, ModelSettings
from tests.support.adapters import write_adapter
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio

CODES = link_pb2.RequestError
BASE = AdapterBase(frozenset({"pocket-r1"}), str(BUNDLED_MODEL), 16)


class Running:
    def __init__(self, log, name, deliver):
        self.deliver = deliver
        self._log, self._name = log, name

    def finish(self):
        self.deliver(link_pb2.Delta(finished=True))

    def cancel(self):
        self._log.append(f"cancel {self._name}")

    def complete(self, index):
        return index == 0


class Rank:
    """An engine that records what it is told, and requests that run until a test ends them."""

    def __init__(self, **model):
        self.log = []
        self.running = {}
        self.errors = {}
        self.held = {}
        self.refused = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.adapters = RankAdapters(ModelSettings(**model), self, self._start, SystemClock())

    async def load_adapter(self, adapter):
        await self.gate.wait()
        name = adapter.key.partition("@")[0]
        if name in self.refused:
            raise self.refused[name]
        assert check_adapter(adapter.folder, BASE).digest == adapter.key.partition("@")[2]
        self.log.append(f"load {name}")
        self.held[adapter.number] = adapter.folder

    async def remove_adapter(self, adapter):
        self.log.append(f"remove {adapter.key.partition('@')[0]}")
        del self.held[adapter.number]

    def _start(self, request, deliver, adapter):
        assert adapter.number in self.held, "the engine got a request before its adapter"
        self.log.append(f"start {request.request_id}")
        running = self.running[request.request_id] = Running(self.log, request.request_id, deliver)
        return running

    def submit(self, request_id, name, digest, folder=""):
        def deliver(delta):
            if delta.HasField("error"):
                self.errors[request_id] = delta.error

        request = link_pb2.Submit(request_id=request_id)
        request.adapter.name, request.adapter.digest = name, digest
        request.adapter.folder = folder
        return self.adapters.submit(request, deliver)

    async def started(self, *names):
        await eventually(lambda: self.running.keys() >= set(names))


@pytest.fixture
def files(tmp_path):
    """Return the digests of five adapters in one folder, by name."""
    folders = {name: write_adapter(tmp_path / name, seed=ord(name)) for name in "abcde"}
    return {name: check_adapter(folder, BASE).digest for name, folder in folders.items()}


@pytest.fixture
async def rank(tmp_path, files):
    entries = [{"name": name, "path": str(tmp_path / name)} for name in files]
    rank = Rank(adapters=entries, lora={"slots": 2, "folder": str(tmp_path)})
    yield rank
    await rank.adapters.stop()


def resident(rank):
    return [key.partition("@")[0] for key in rank.adapters.report().resident]


async def test_an_adapter_is_loaded_once_before_the_requests_that_name_it(rank, files):
    rank.submit("1", "a", files["a"])
    rank.submit("2", "a", files["a"])
    assert rank.log == []
    assert rank.adapters.report().waiting_requests == 2
    await rank.started("1", "2")
    assert rank.log == ["load a", "start 1", "start 2"]
    rank.submit("3", "a", files["a"])
    assert rank.log[-1] == "start 3"
    report = rank.adapters.report()
    assert (report.requests_total, report.loads_total, report.waiting_requests) == (3, 1, 0)


async def test_an_idle_adapter_is_offered_again_because_the_engine_may_have_dropped_it(rank, files):
    rank.submit("1", "a", files["a"])
    await rank.started("1")
    rank.running["1"].finish()
    rank.submit("2", "a", files["a"])
    await rank.started("2")
    assert rank.log == ["load a", "start 1", "load a", "start 2"]
    assert rank.adapters.report().loads_total == 1


async def test_the_engine_keeps_its_copy_when_the_folder_is_deleted(rank, files, tmp_path):
    rank.submit("1", "a", files["a"])
    await rank.started("1")
    rank.running["1"].finish()
    shutil.rmtree(tmp_path / "a")
    rank.submit("2", "a", files["a"])
    await rank.started("2")
    (copy,) = rank.held.values()
    assert copy.is_dir()


async def test_the_least_recently_used_idle_adapter_is_removed(rank, files):
    for number, name in enumerate("abac"):
        rank.submit(str(number), name, files[name])
        await rank.started(str(number))
        rank.running[str(number)].finish()
    assert rank.log[-3:] == ["remove b", "load c", "start 3"]
    assert resident(rank) == ["a", "c"]
    report = rank.adapters.report()
    assert (report.loads_total, report.evictions_total) == (3, 1)
    assert sorted(folder.name for folder in next(iter(rank.held.values())).parent.iterdir()) == [
        ".owner",
        "1",
        "3",
    ]


async def test_an_adapter_in_use_is_never_removed_and_its_slot_is_freed_in_the_end(rank, files):
    rank.submit("1", "a", files["a"])
    rank.submit("2", "b", files["b"])
    await rank.started("1", "2")
    rank.submit("3", "c", files["c"])
    await eventually(lambda: resident(rank) == ["b"])  # a gets no more requests
    rank.submit("4", "a", files["a"])
    rank.submit("5", "b", files["b"])
    assert "5" in rank.running
    assert "remove a" not in rank.log
    rank.running["1"].finish()
    await rank.started("3")
    assert "4" not in rank.running
    rank.running["3"].finish()
    await rank.started("4")
    loads = [line for line in rank.log if not line.startswith("start")]
    assert loads == ["load a", "load b", "remove a", "load c", "remove c", "load a"]


async def test_an_adapter_stays_when_nobody_waits_for_its_slot_any_more(rank, files):
    rank.submit("1", "a", files["a"])
    rank.submit("2", "b", files["b"])
    await rank.started("1", "2")
    waiting = rank.submit("3", "c", files["c"])
    await eventually(lambda: resident(rank) == ["b"])
    rank.submit("4", "a", files["a"])
    waiting.cancel()
    await rank.started("4")
    assert "1" in rank.running
    assert rank.log.count("load a") == 2, "offered again, not removed"
    waiting = rank.submit("5", "c", files["c"])
    await eventually(lambda: len(resident(rank)) == 1)
    waiting.cancel()
    await eventually(lambda: len(resident(rank)) == 2)


async def test_a_cancelled_request_frees_its_slot(rank, files):
    one = rank.submit("1", "a", files["a"])
    rank.submit("2", "b", files["b"])
    await rank.started("1", "2")
    waiting = rank.submit("3", "c", files["c"])
    rank.submit("4", "d", files["d"])
    waiting.cancel()
    one.cancel()
    await rank.started("4")
    assert "cancel 1" in rank.log
    assert "3" not in rank.running
    assert not waiting.complete(1) or waiting.complete(0)


async def test_a_completed_request_frees_its_slot(rank, files):
    one = rank.submit("1", "a", files["a"])
    rank.submit("2", "b", files["b"])
    await rank.started("1", "2")
    assert not one.complete(1)
    assert one.complete(0)
    rank.submit("3", "c", files["c"])
    await rank.started("3")
    assert "remove a" in rank.log


async def test_without_a_free_slot_in_time_only_that_request_fails(tmp_path, files):
    entries = [{"name": name, "path": str(tmp_path / name)} for name in files]
    rank = Rank(adapters=entries, lora={"slots": 1, "load_timeout": 0.05})
    rank.submit("1", "a", files["a"])
    await rank.started("1")
    rank.submit("2", "b", files["b"])
    error = await eventually(lambda: rank.errors.get("2"))
    assert error.code == CODES.OVERLOADED
    assert "all 1 adapter slots of the rank (lora.slots)" in error.message
    rank.submit("3", "a", files["a"])
    assert "3" in rank.running
    await rank.adapters.stop()


async def test_a_load_that_fails_costs_only_its_requests(rank, files):
    rank.refused["a"] = AdapterError("vLLM cannot load it: boom")
    rank.submit("1", "a", files["a"])
    rank.submit("2", "b", files["b"])
    error = await eventually(lambda: rank.errors.get("1"))
    assert (error.code, error.message) == (
        CODES.ADAPTER,
        "adapter 'a': vLLM cannot load it: boom",
    )
    await rank.started("2")
    rank.submit("3", "a", files["a"])
    assert rank.errors["3"].message == error.message, "further requests fail at once"
    assert rank.adapters.report().failures_total == 1


async def test_a_load_that_never_ends_is_given_up(tmp_path, files):
    entries = [{"name": name, "path": str(tmp_path / name)} for name in files]
    rank = Rank(adapters=entries, lora={"slots": 1, "load_timeout": 0.2})
    rank.gate.clear()
    rank.submit("1", "a", files["a"])
    error = await eventually(lambda: rank.errors.get("1"))
    assert "not loaded within 0.2 s (lora.load_timeout)" in error.message
    await rank.adapters.stop()


async def test_an_engine_that_is_gone_is_not_the_adapters_fault(rank, files):
    rank.refused["a"] = EngineError("an engine process died")
    rank.submit("1", "a", files["a"])
    error = await eventually(lambda: rank.errors.get("1"))
    assert error.code == CODES.ENGINE_FAILED


@pytest.mark.parametrize(
    ("name", "digest", "folder", "error"),
    [
        pytest.param("z", "0", "", "not in the settings of this rank", id="unknown"),
        pytest.param("a", "0" * 16, "", "have the digest", id="other-files"),
        pytest.param("z", "0", "none", "cannot be copied: No such file", id="no-folder"),
        pytest.param("z", "0", "../..", "is not a folder inside", id="outside"),
        pytest.param("z", "0", "/etc", "is not a folder inside", id="absolute"),
    ],
)
async def test_wrong_adapters_are_refused_before_the_engine_sees_them(
    rank, name, digest, folder, error
):
    rank.submit("1", name, digest, folder)
    found = await eventually(lambda: rank.errors.get("1"))
    assert found.code == CODES.ADAPTER
    assert error in found.message
    assert rank.log == []


async def test_an_adapter_loaded_at_run_time_is_found_in_the_folder(rank, files):
    rank.submit("1", "new", files["e"], "e")
    await rank.started("1")
    assert rank.log == ["load new", "start 1"]


async def test_corrupt_files_are_refused_before_the_engine_sees_them(rank, files, tmp_path):
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"nothing")
    rank.submit("1", "a", files["a"])
    found = await eventually(lambda: rank.errors.get("1"))
    assert "is corrupt" in found.message


async def test_stopping_fails_what_waits_and_deletes_the_copies(rank, files):
    rank.submit("1", "a", files["a"])
    await rank.started("1")
    copies = next(iter(rank.held.values())).parent
    rank.gate.clear()
    rank.submit("2", "b", files["b"])
    await asyncio.sleep(0)
    await rank.adapters.stop()
    assert rank.errors["2"].code == CODES.ENGINE_FAILED
    assert not copies.exists()


async def test_the_settings_adapters_are_checked_at_the_start(tmp_path):
    write_adapter(tmp_path / "x", rank=32)
    rank = Rank(adapters=[{"name": "x", "path": str(tmp_path / "x")}])
    with pytest.raises(SettingsError, match=r"model\.adapters\[0\] \(x\): .*rank 32 is above 16"):
        rank.adapters.copies.check()
    await rank.adapters.stop()
