"""The bound on requests in flight, which the clients of all models share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Overloaded
from serving.requests.client import RouterShare
from serving.settings import Settings


def share(limit, models):
    settings = Settings(router={"max_inflight_requests": limit})
    return RouterShare(settings, lambda: True, models)


def fill(shared, limit):
    """Start requests of one model until one is rejected; return their number."""
    for own in range(limit + 1):
        try:
            shared.check(own)
        except Overloaded:
            return own
        shared.inflight += 1
    raise AssertionError("the limit is not kept")


@given(st.integers(1, 200))
def test_the_only_model_may_use_the_whole_limit(limit):
    assert fill(share(limit, 1), limit) == limit


@given(st.integers(2, 200), st.integers(2, 8))
def test_one_model_alone_leaves_room_for_another(limit, models):
    shared = share(limit, models)
    assert 0 < fill(shared, limit) < limit
    shared.check(0)


def test_one_of_several_models_may_use_four_fifths():
    shared = share(100, 2)
    assert fill(shared, 100) == 80
    with pytest.raises(Overloaded, match="80 requests of this model"):
        shared.check(80)
    shared.check(0)
