"""The collector rests while modules are imported, and comes back whatever happens."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serving import heap


@pytest.fixture(autouse=True)
def enabled_again() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_while_importing() -> None:
    with heap.importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_comes_back_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), heap.importing():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_who_has_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    with heap.importing():
        pass
    assert not gc.isenabled()


def test_what_is_kept_is_collected_no_more() -> None:
    # In a process of its own: there is no way back for single objects.
    code = (
        "import gc; from serving import heap; before = gc.get_threshold(); heap.keep(); "
        "after = gc.get_threshold(); "
        "print(gc.get_freeze_count() > 1000, after[0] > before[0], after[1:] == before[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"
