"""Garbage collection pauses, freezes and resumes; the limit on open files is only raised."""

import gc
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serving import process_tuning
from serving.process_tuning import MAX_OPEN_FILES, raise_open_files_limit

FOR_EVER = resource.RLIM_INFINITY


@pytest.fixture(autouse=True)
def enabled_again() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_while_importing() -> None:
    with process_tuning.gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_comes_back_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), process_tuning.gc_paused():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_who_has_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    with process_tuning.gc_paused():
        pass
    assert not gc.isenabled()


def test_what_is_kept_is_collected_no_more() -> None:
    # In a separate process: freezing single objects cannot be undone.
    code = (
        "import gc; from serving import process_tuning; before = gc.get_threshold(); "
        "process_tuning.freeze_existing(); "
        "after = gc.get_threshold(); "
        "print(gc.get_freeze_count() > 1000, after[0] > before[0], after[1:] == before[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"


_MANY_THAT_STAY = """
import gc
from serving import process_tuning
sizes = []
def note(phase, info):
    if info["generation"] == 2 and phase == "start":
        sizes.append(sum(len(gc.get_objects(generation=each)) for each in range(3)))
gc.callbacks.append(note)
process_tuning.freeze_after_collections()
sizes.clear()
kept = [[] for _ in range(1_000_000)]
print(len(sizes), max(sizes))
"""

_OLD_ONES_END_AS_NEW_ONES_BEGIN = """
import gc
from collections import deque
from serving import process_tuning
process_tuning.freeze_after_collections()
sizes = []
def note(phase, info):
    if phase == "start":
        sizes.append(sum(len(gc.get_objects(generation=n)) for n in range(info["generation"] + 1)))
gc.callbacks.append(note)
requests = deque([] for _ in range(300_000))
for _ in range(300_000):
    requests.append([])
    requests.popleft()
others = [[] for _ in range(20_000)]
print(len(sizes), max(sizes))
"""

_RINGS = """
import asyncio, gc, weakref
from serving import process_tuning
class Ring:
    def __init__(self):
        self.me = self
process_tuning._CHECK_INTERVAL = 0
process_tuning._GROWTH_WHEN_IDLE, process_tuning._GROWTH_WHEN_BUSY = {grown}
process_tuning.freeze_after_collections()
ring = Ring()
gone = weakref.ref(ring)
gc.collect()
del ring
gc.collect()
print(gone() is None)
async def main():
    task = asyncio.create_task(process_tuning.collect_when_idle(lambda: {idle}))
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
asyncio.run(main())
print(gone() is None)
"""

_TUPLES_IN_A_THREAD = """
import sys, threading
from serving import process_tuning
sys.setswitchinterval(1e-6)
stopped, failed = threading.Event(), 0
def build():
    global failed
    while not stopped.is_set():
        try:
            tuple([each] for each in range(20))
        except SystemError:
            failed += 1
thread = threading.Thread(target=build)
thread.start()
for _ in range(25_000):
    process_tuning._bound_collection("start", {"generation": 1})
stopped.set()
thread.join()
print(failed)
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(_MANY_THAT_STAY, id="many-that-stay"),
        pytest.param(_OLD_ONES_END_AS_NEW_ONES_BEGIN, id="old-ones-end-as-new-ones-begin"),
    ],
)
def test_a_collection_looks_at_a_bounded_number_of_objects(code: str) -> None:
    count, most = map(int, run(code))
    assert count > 10
    assert most <= process_tuning._MAX_SCANNED


@pytest.mark.parametrize(
    ("idle", "grown", "found"),
    [
        pytest.param(True, "-(10**12), 10**12", True, id="idle-and-grown"),
        pytest.param(False, "-(10**12), 10**12", False, id="busy-and-grown"),
        pytest.param(False, "10**12, -(10**12)", True, id="busy-and-grown-a-lot"),
        pytest.param(True, "10**12, 10**12", False, id="idle-and-not-grown"),
    ],
)
def test_rings_that_were_frozen_are_found_later(idle: bool, grown: str, found: bool) -> None:
    assert run(_RINGS.format(idle=idle, grown=grown)) == ["False", str(found)]


def test_a_collection_does_not_disturb_tuples_that_other_threads_build() -> None:
    assert run(_TUPLES_IN_A_THREAD) == ["0"]


@pytest.mark.parametrize(
    ("limits", "after"),
    [
        pytest.param((1024, 4096), (4096, 4096), id="up to the hard limit"),
        pytest.param((1024, FOR_EVER), (MAX_OPEN_FILES, FOR_EVER), id="no hard limit"),
        pytest.param((MAX_OPEN_FILES + 1, MAX_OPEN_FILES + 2), None, id="enough"),
        pytest.param((FOR_EVER, FOR_EVER), None, id="no limit"),
    ],
)
def test_the_limit_of_open_files_is_raised_never_lowered(limits, after, monkeypatch) -> None:
    done = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: done.append(given))
    raise_open_files_limit()
    assert done == ([] if after is None else [after])
