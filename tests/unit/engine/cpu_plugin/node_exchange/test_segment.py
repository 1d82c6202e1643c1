"""Memory that several processes map."""

import errno
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.engine.cpu_plugin.node_exchange import futex
from serving.engine.cpu_plugin.node_exchange.segment import NAME, OwnedSegment, attach
from tests.support.waiting import PATIENCE

SIZE = 8192


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings():
    return Path("/proc/self/maps").read_text().count(NAME)


def test_what_one_writes_the_other_reads():
    owned = OwnedSegment(SIZE)
    other = attach(owned.offer)
    owned.bytes[100:104] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    assert other.bytes[100:104].tolist() == [1, 2, 3, 4]
    assert other.words[25] == int.from_bytes(bytes([1, 2, 3, 4]), "little")
    owned.withdraw()


def test_memory_has_no_name_in_a_file_system_and_goes_with_its_last_user():
    before = mappings()
    owned = OwnedSegment(SIZE)
    other = attach(owned.offer)
    owned.withdraw()
    assert mappings() == before + 2
    assert not list(Path("/dev/shm").glob(f"*{NAME}*"))
    del owned, other
    assert mappings() == before


def test_a_withdrawn_offer_cannot_be_taken():
    owned = OwnedSegment(SIZE)
    owned.withdraw()
    with pytest.raises(OSError):
        attach(owned.offer)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"token": b"x" * 16}, id="another-token"),
        pytest.param({"pid": 2**22 + 1}, id="no-such-process"),
        pytest.param({"descriptor": 2**20}, id="no-such-file"),
    ],
)
def test_anything_else_than_what_was_offered_is_refused(change):
    owned = OwnedSegment(SIZE)
    descriptors = open_files()
    with pytest.raises(OSError):
        attach(replace(owned.offer, **change))
    assert open_files() == descriptors
    owned.withdraw()


def test_a_futex_wakes_a_thread_that_waits_for_a_word_to_change():
    owned = OwnedSegment(SIZE)
    other = attach(owned.offer)
    address = owned.address + 64

    def wait():
        while other.words[16] == 0:
            futex.wait(other.address + 64, 0, PATIENCE)

    waiting = threading.Thread(target=wait)
    waiting.start()
    owned.words[16] = 7
    futex.wake(address)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    owned.withdraw()


def test_a_futex_returns_at_once_if_the_word_differs_and_at_the_timeout_if_not():
    owned = OwnedSegment(SIZE)
    futex.wait(owned.address + 64, 1, PATIENCE)
    futex.wait(owned.address + 64, 0, 0.001)
    owned.withdraw()


def test_a_futex_at_no_address_is_an_error():
    with pytest.raises(OSError) as raised:
        futex.wait(0, 0, 0.001)
    assert raised.value.errno == errno.EFAULT
