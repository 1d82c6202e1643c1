"""Sessions: remembered for a while, and never more than so many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing.sessions import Sessions

HERE, THERE = ("g0", "e", 0), ("g0", "e", 1)


def test_follows_the_last_pick():
    sessions = Sessions(10, 60)
    assert sessions.get("a", 0.0) is None
    sessions.put("a", HERE, 0.0)
    sessions.put("a", THERE, 1.0)
    assert sessions.get("a", 2.0) == THERE
    assert sessions.get("b", 2.0) is None


@pytest.mark.parametrize(("later", "expected"), [(60.0, HERE), (60.5, None)], ids=["in", "out"])
def test_is_forgotten_after_a_while_without_requests(later, expected):
    sessions = Sessions(10, 60)
    sessions.put("a", HERE, 100.0)
    assert sessions.get("a", 100.0 + later) == expected


def test_old_ones_make_room():
    sessions = Sessions(2, 60)
    for name in "abc":
        sessions.put(name, HERE, 0.0)
    assert sessions.get("a", 0.0) is None
    assert sessions.get("c", 0.0) == HERE


def test_the_old_take_no_memory():
    sessions = Sessions(100, 60)
    for name in "abc":
        sessions.put(name, HERE, 0.0)
    sessions.put("d", HERE, 100.0)
    assert len(sessions) == 1


@pytest.mark.parametrize(("limit", "name"), [(10, None), (0, "a")], ids=["nameless", "turned off"])
def test_remembers_nothing(limit, name):
    sessions = Sessions(limit, 60)
    sessions.put(name, HERE, 0.0)
    assert len(sessions) == 0
    assert sessions.get(name, 0.0) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), max_size=50), st.integers(1, 5))
def test_bounded(history, limit):
    sessions, now = Sessions(limit, 10), 0.0
    for number, passed in history:
        now += passed
        sessions.put(f"s{number}", HERE, now)
        assert len(sessions) <= limit
        assert sessions.get(f"s{number}", now) == HERE
