"""KvMirror and its feeds: every router ends up with exactly the contents of the engine's cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine import kv_mirror
from serving.engine.kv_mirror import KvMirror
from serving.link.block_hashes import block_hashes

SIZE = 2


def names(*tokens):
    return list(block_hashes(tokens, SIZE))


def listen(mirror):
    """Return a feed, and the set of hashes that it has sent."""
    return mirror.feed(lambda: None), set()


def hear(feed, told):
    """Apply what a feed sends, as a router does."""
    sequences = []
    for events in feed.take():
        if events.reset:
            told.clear()
        told -= set(events.removed)
        told |= set(events.stored)
        sequences.append(events.sequence)
    return sequences


def test_tells_what_came_and_what_went():
    mirror = KvMirror(SIZE, 10)
    feed = mirror.feed(lambda: None)
    (first,) = feed.take()
    assert (first.reset, first.sequence, first.block_size) == (True, 0, SIZE)
    assert not first.stored
    mirror.stored(["a", "b"], None, [1, 2, 3, 4])
    (second,) = feed.take()
    assert (second.reset, second.sequence) == (False, 1)
    assert list(second.stored) == names(1, 2, 3, 4)
    mirror.removed(["b"])
    (third,) = feed.take()
    assert list(third.removed) == names(1, 2, 3, 4)[1:]
    assert not third.stored
    assert feed.take() == []


def test_goes_on_from_a_known_parent_and_leaves_out_what_hangs_in_the_air():
    mirror = KvMirror(SIZE, 10)
    mirror.stored(["a"], None, [1, 2])
    mirror.stored(["b"], "a", [3, 4])
    mirror.stored(["x"], "never heard of", [5, 6])
    assert mirror.names == set(names(1, 2, 3, 4))


def test_a_block_is_there_until_its_last_copy_is_gone():
    mirror = KvMirror(SIZE, 10)
    mirror.stored(["a"], None, [1, 2])
    mirror.stored(["a"], None, [1, 2])
    mirror.removed(["a"])
    assert mirror.names == set(names(1, 2))
    mirror.removed(["a"])
    assert not mirror.names
    mirror.removed(["a", "unknown"])
    assert not mirror.names


def test_one_who_comes_later_hears_all_that_is_there():
    mirror = KvMirror(SIZE, 10)
    mirror.stored(["a", "b"], None, [1, 2, 3, 4])
    mirror.removed(["b"])
    late = mirror.feed(lambda: None)
    (first,) = late.take()
    assert first.reset
    assert list(first.stored) == names(1, 2)


def test_what_came_and_went_in_between_costs_nothing_on_the_other_side():
    mirror = KvMirror(SIZE, 10)
    feed, sent = listen(mirror)
    hear(feed, sent)
    for _ in range(100):
        mirror.stored(["a"], None, [1, 2])
        mirror.removed(["a"])
    (events,) = feed.take()
    assert len(events.removed) == 1
    assert not events.stored


def test_too_many_changes_become_one_reset():
    mirror = KvMirror(SIZE, 100, feed_limit=5)
    feed, sent = listen(mirror)
    hear(feed, sent)
    for number in range(8):
        mirror.stored([number], None, [number, number])
    (events,) = feed.take()
    assert events.reset
    assert set(events.stored) == mirror.names
    assert len(mirror.names) == 8


def test_large_states_are_cut_into_messages(monkeypatch):
    monkeypatch.setattr(kv_mirror, "_CHUNK", 3)
    mirror = KvMirror(SIZE, 100)
    for number in range(8):
        mirror.stored([number], None, [number, number])
    feed, sent = listen(mirror)
    assert hear(feed, sent) == [0, 1, 2]
    assert sent == mirror.names


def test_more_than_the_engine_can_hold_means_that_something_was_missed():
    mirror = KvMirror(SIZE, 3)
    feed, sent = listen(mirror)
    for number in range(3):
        mirror.stored([number], None, [number, number])
    hear(feed, sent)
    assert len(sent) == 3
    mirror.stored([3], None, [3, 3])
    hear(feed, sent)
    assert sent == mirror.names == set()


def test_a_dropped_feed_hears_nothing_more():
    woken = []
    mirror = KvMirror(SIZE, 10)
    feed = mirror.feed(lambda: woken.append(1))
    mirror.drop(feed)
    woken.clear()
    mirror.stored(["a"], None, [1, 2])
    mirror.cleared()
    assert not woken


events = st.one_of(
    st.tuples(st.just("stored"), st.integers(0, 9)),
    st.tuples(st.just("removed"), st.integers(0, 9)),
    st.tuples(st.just("cleared"), st.just(0)),
    st.tuples(st.just("hear"), st.integers(0, 2)),
    st.tuples(st.just("join"), st.just(0)),
)


@pytest.mark.parametrize("limit", [2, 65536], ids=["overflows", "roomy"])
@given(st.lists(events, max_size=60))
def test_all_feeds_end_with_the_truth(limit, history):
    mirror = KvMirror(SIZE, 100, feed_limit=limit)
    copies = dict.fromkeys(range(10), 0)
    feeds = [listen(mirror)]
    for what, value in history:
        if what == "stored":
            copies[value] += 1
            mirror.stored([value], None, [value, value])
        elif what == "removed":
            copies[value] = max(copies[value] - 1, 0)
            mirror.removed([value])
        elif what == "cleared":
            copies = dict.fromkeys(copies, 0)
            mirror.cleared()
        elif what == "join":
            feeds.append(listen(mirror))
        else:
            hear(*feeds[value % len(feeds)])
    truth = {names(value, value)[0] for value, count in copies.items() if count}
    assert mirror.names == truth
    for feed, sent in feeds:
        hear(feed, sent)
        assert sent == truth
