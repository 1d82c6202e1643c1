"""Block hashes depend on content, are chained, and are computed once and only as far as read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.link import block_hashes as module
from serving.link.block_hashes import (
    PromptBlockHashes,
    adapter_root,
    block_hash,
    block_hashes,
    pack,
)

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_names_are_pinned():
    # Ranks and routers of different versions must mean the same.
    assert list(block_hashes([1, 2, 3, 4, 5], 2)) == [4053798802772487905, 13055128396142165517]


@given(tokens, tokens, st.integers(1, 5))
def test_equal_names_mean_equal_beginnings(one, other, size):
    pairs = zip(block_hashes(one, size), block_hashes(other, size), strict=False)
    for index, (left, right) in enumerate(pairs):
        end = (index + 1) * size
        assert (left == right) is (one[:end] == other[:end])


@given(tokens, st.integers(1, 5), st.integers(0, 8))
def test_a_chain_continues_from_any_of_its_blocks(ids, size, blocks):
    names = list(block_hashes(ids, size))
    blocks = min(blocks, len(names))
    parent = names[blocks - 1] if blocks else module.ROOT
    assert list(block_hashes(ids[blocks * size :], size, parent)) == names[blocks:]


@pytest.mark.parametrize(
    ("count", "size", "all_blocks", "reusable"),
    [
        pytest.param(0, 4, 0, 0, id="nothing"),
        pytest.param(3, 4, 0, 0, id="less than a block"),
        pytest.param(4, 4, 1, 0, id="the last token is computed always"),
        pytest.param(5, 4, 1, 1, id="one more than a block"),
        pytest.param(9, 4, 2, 2, id="two"),
    ],
)
def test_reusable_leaves_the_last_token(count, size, all_blocks, reusable):
    prompt = PromptBlockHashes(range(count))
    assert len(list(prompt.reusable(size))) == reusable
    assert len(prompt.all(size)) == all_blocks


def test_hashes_each_block_once_and_only_on_demand(monkeypatch):
    hashed = []

    def counting(parent, packed):
        hashed.append(packed)
        return block_hash(parent, packed)

    monkeypatch.setattr(module, "block_hash", counting)
    prompt = PromptBlockHashes(range(100))
    first = prompt.reusable(4)
    next(first)
    next(first)
    assert len(hashed) == 2
    assert list(prompt.reusable(4))[:2] == prompt.all(4)[:2]
    assert len(hashed) == 25
    assert hashed[0] == pack([0, 1, 2, 3])


def test_each_block_size_has_its_own_names():
    prompt = PromptBlockHashes(range(20))
    assert not set(prompt.all(4)) & set(prompt.all(8))


def test_an_adapters_blocks_are_different_ones():
    prompt = list(range(40))
    plain = PromptBlockHashes(prompt).all(8)
    one = PromptBlockHashes(prompt, adapter_root("a@1")).all(8)
    other = PromptBlockHashes(prompt, adapter_root("a@2")).all(8)
    assert len({*plain, *one, *other}) == 3 * len(plain)
    assert one == list(block_hashes(prompt, 8, adapter_root("a@1")))
