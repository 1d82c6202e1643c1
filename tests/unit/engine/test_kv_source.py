"""KvSource: vLLM's messages update the mirror; a missing one empties it."""

import msgspec
import pytest
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from serving.engine.kv_mirror import KvMirror
from serving.engine.kv_source import KvSource
from serving.link.block_hashes import adapter_root, block_hashes

SIZE = 4


@pytest.fixture
def source():
    return KvSource("ipc:///nowhere", KvMirror(SIZE, 100))


def stored(hashes, tokens, parent=None, **fields):
    fields = {"block_size": SIZE, "lora_id": None, "medium": "GPU", "lora_name": None} | fields
    return BlockStored(
        block_hashes=hashes, parent_block_hash=parent, token_ids=list(tokens), **fields
    )


def removed(*hashes, **fields):
    return BlockRemoved(block_hashes=list(hashes), medium="GPU", **fields)


def message(number, *events):
    batch = KVEventBatch(ts=0.0, events=list(events))
    return [b"", number.to_bytes(8, "big"), msgspec.msgpack.encode(batch)]


def names(*tokens):
    return set(block_hashes(tokens, SIZE))


def test_stored_removed_cleared(source):
    source.receive(message(0, stored([11, 12], range(8), group_idx=0)))
    assert source.mirror.names == names(*range(8))
    source.receive(message(1, stored([13], range(8, 12), parent=12), removed(13)))
    assert source.mirror.names == names(*range(8))
    source.receive(message(2, removed(12)))
    assert source.mirror.names == names(*range(4))
    source.receive(message(3, AllBlocksCleared()))
    assert source.mirror.names == set()


def test_blocks_of_an_adapter_have_its_root(source):
    adapted = {"lora_id": 1, "lora_name": "a@1", "extra_keys": [("a@1",)]}
    source.receive(message(0, stored([11], range(4), **adapted)))
    source.receive(message(1, stored([12], range(4, 8), parent=11, **adapted)))
    assert source.mirror.names == set(block_hashes(range(8), SIZE, adapter_root("a@1")))
    source.receive(message(2, stored([13], range(4))))
    assert source.mirror.names > names(*range(4))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(stored([1], [1, 2], block_size=2), id="part of a block"),
        pytest.param(stored([1], range(8)), id="blocks left out in between"),
        pytest.param(stored([1], range(4), group_idx=1), id="another kind of attention"),
        pytest.param(stored([1], range(4), extra_keys=[("salt",)]), id="not by tokens alone"),
        pytest.param(
            stored([1], range(4), lora_name="a@1", extra_keys=[("a@1", "salt")]),
            id="not by tokens and adapter alone",
        ),
    ],
)
def test_what_tokens_do_not_name_is_left_out(source, event):
    source.receive(message(0, event))
    assert source.mirror.names == set()


def test_blocks_without_extra_keys_are_plain(source):
    source.receive(message(0, stored([1], range(4), extra_keys=[None])))
    assert source.mirror.names == names(*range(4))


@pytest.mark.parametrize(
    "first", [pytest.param(3, id="the beginning"), pytest.param(0, id="in between")]
)
def test_a_lost_message_empties_the_mirror(source, first):
    source.receive(message(first, stored([1], [1, 1, 1, 1])))
    source.receive(message(first + 2, stored([2], [2, 2, 2, 2])))
    assert source.mirror.names == names(2, 2, 2, 2)
    source.receive(message(first + 3, stored([3], [3, 3, 3, 3])))
    assert source.mirror.names == names(2, 2, 2, 2) | names(3, 3, 3, 3)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"", bytes(8), b"\xc1"], id="no msgpack"),
        pytest.param([b"", b""], id="parts missing"),
    ],
)
def test_a_bad_message_empties_the_mirror_and_is_survived(source, parts):
    source.receive(message(0, stored([1], range(4))))
    source.receive(parts)
    assert source.mirror.names == set()
    source.receive(message(2, stored([1], range(4))))
    assert source.mirror.names == names(*range(4))
