"""The collector rests while modules are imported, and comes back whatever happens."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serving import gc_tuning


@pytest.fixture(autouse=True)
def enabled_again() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_while_importing() -> None:
    with gc_tuning.importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_comes_back_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), gc_tuning.importing():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_who_has_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    with gc_tuning.importing():
        pass
    assert not gc.isenabled()


def test_what_is_kept_is_collected_no_more() -> None:
    # In a process of its own: there is no way back for single objects.
    code = (
        "import gc; from serving import gc_tuning as heap; before = gc.get_threshold(); "
        "heap.keep(); "
        "after = gc.get_threshold(); "
        "print(gc.get_freeze_count() > 1000, after[0] > before[0], after[1:] == before[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"


_MANY_THAT_STAY = """
import gc
from serving import gc_tuning as heap
sizes = []
def note(phase, info):
    if info["generation"] == 2 and phase == "start":
        sizes.append(sum(len(gc.get_objects(generation=each)) for each in range(3)))
gc.callbacks.append(note)
heap.keep_always()
sizes.clear()
kept = [[] for _ in range(1_000_000)]
print(len(sizes), max(sizes))
"""

_RINGS = """
import asyncio, gc, weakref
from serving import gc_tuning as heap
class Ring:
    def __init__(self):
        self.me = self
heap._LOOK, heap._GROWN, heap._GROWN_A_LOT = 0, {grown}
heap.keep_always()
ring = Ring()
gone = weakref.ref(ring)
gc.collect()
del ring
gc.collect()
print(gone() is None)
async def main():
    task = asyncio.create_task(heap.look_after(lambda: {idle}))
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
asyncio.run(main())
print(gone() is None)
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_full_collection_looks_at_what_is_new_only() -> None:
    count, most = map(int, run(_MANY_THAT_STAY))
    assert count > 10
    bound = gc_tuning._YOUNG * (gc_tuning._MIDDLE + 2) * (gc_tuning._FULL + 2)
    assert most <= bound


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
