"""Ids and deadlines from headers or metadata."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.edge.request_context import deadline_in, request_id_of, timeout_of
from serving.errors import InvalidRequest
from serving.fleet.deadline import deadline_var


class FixedClock:
    """Time that stands still."""

    def monotonic(self) -> float:
        return 100.0

    def time(self) -> float:
        return 0.0


@given(st.text())
def test_an_id_is_passed_or_refused_never_changed(text):
    try:
        passed = request_id_of({"x-request-id": text})
    except InvalidRequest:
        assert not text or len(text) > 128 or any(not "!" <= char <= "~" for char in text)
    else:
        assert passed == text


def test_made_ids_differ():
    assert request_id_of({}) != request_id_of({})


@given(st.integers(1, 86_400_000))
def test_timeout_in_milliseconds(milliseconds):
    assert timeout_of({"x-request-timeout-ms": str(milliseconds)}) == milliseconds / 1000


@given(st.text().filter(lambda text: not text.isdecimal()))
def test_other_timeouts_are_refused(text):
    with pytest.raises(InvalidRequest):
        timeout_of({"x-request-timeout-ms": text})


def test_no_timeout_is_none():
    assert timeout_of({}) is None


def test_deadline_holds_in_the_block_alone():
    with deadline_in(2.5, FixedClock()):
        assert deadline_var.get() == 102.5
        # The request before on the same connection is no business of this one.
        with deadline_in(None, FixedClock()):
            assert deadline_var.get() is None
        assert deadline_var.get() == 102.5
    assert deadline_var.get() is None
