"""FakeCache: bounded, and its mirror matches its content."""

from hypothesis import given
from hypothesis import strategies as st

from serving.engine.fake.cache import FakeCache
from serving.link.block_hashes import block_hashes

SIZE = 4


def test_what_was_kept_is_found_by_its_beginning():
    cache = FakeCache(10, SIZE)
    assert cache.cached_tokens(range(20)) == 0
    cache.keep(range(20))
    assert cache.cached_tokens(range(20)) == 16, "the last token is always computed"
    assert cache.cached_tokens([*range(10), 99, 99, 99]) == 8
    assert cache.cached_tokens([99, *range(1, 20)]) == 0


def test_least_recently_used_goes_first_and_ends_before_beginnings():
    cache = FakeCache(4, SIZE)
    old, new = list(range(8)), list(range(100, 112))
    cache.keep(old)
    cache.keep(new)
    assert cache.cached_tokens([*new, 0]) == 12
    assert cache.cached_tokens([*old, 0]) == 4


def test_cleared_is_empty():
    cache = FakeCache(4, SIZE)
    cache.keep(range(8))
    cache.clear()
    assert cache.cached_tokens(range(9)) == 0
    assert cache.mirror.names == set()


def test_a_cache_without_blocks_keeps_nothing():
    cache = FakeCache(0, SIZE)
    cache.keep(range(8))
    assert cache.cached_tokens(range(9)) == 0
    assert len(cache.mirror) == 0


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)


@given(st.lists(prompts, max_size=20), prompts)
def test_the_mirror_knows_what_the_cache_would_find(history, asked):
    cache = FakeCache(8, SIZE)
    for prompt in history:
        cache.keep(prompt)
        assert len(cache.mirror) <= 8
    depth = 0
    for name in block_hashes(asked[:-1], SIZE):
        if name not in cache.mirror.names:
            break
        depth += 1
    assert cache.cached_tokens(asked) == depth * SIZE
