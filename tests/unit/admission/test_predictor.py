"""Predicted waits: Little's law, from the first finished request on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.predictor import WaitPredictor


def steady(predictor, *, slots, tokens, residence, rounds):
    """``slots`` requests at a time, each for ``residence`` seconds, one after the other."""
    for turn in range(rounds + 1):
        now = turn * residence
        if turn:
            for _ in range(slots):
                predictor.ended(tokens, now - residence, now)
        for _ in range(slots):
            predictor.placed(tokens, now)
    return rounds * residence


def test_nothing_is_predicted_before_a_request_has_ended():
    predictor = WaitPredictor(30)
    predictor.placed(100, 0.0)
    assert predictor.wait(100, 5.0) is None


def test_nothing_is_predicted_while_nothing_is_in_flight():
    predictor = WaitPredictor(30)
    predictor.placed(100, 0.0)
    predictor.ended(100, 0.0, 2.0)
    assert predictor.wait(100, 5.0) is None


@pytest.mark.parametrize(
    ("slots", "tokens", "residence", "ahead", "wait"),
    [
        pytest.param(4, 100, 2.0, 400, 2.0, id="a whole turn of the fleet"),
        pytest.param(4, 100, 2.0, 100, 0.5, id="one of four slots"),
        pytest.param(8, 100, 2.0, 400, 1.0, id="twice the fleet, half the wait"),
        pytest.param(4, 100, 4.0, 400, 4.0, id="twice as slow, twice the wait"),
        pytest.param(4, 100, 2.0, 0, 0.0, id="nothing ahead"),
    ],
)
def test_steady_state(slots, tokens, residence, ahead, wait):
    predictor = WaitPredictor(30)
    now = steady(predictor, slots=slots, tokens=tokens, residence=residence, rounds=5)
    assert predictor.wait(ahead, now) == pytest.approx(wait, rel=0.1)


def test_a_loss_of_half_the_fleet_doubles_the_wait_at_once():
    predictor = WaitPredictor(30)
    now = steady(predictor, slots=4, tokens=100, residence=2.0, rounds=3)
    for _ in range(2):
        predictor.lost(100, now, now)
    assert predictor.wait(400, now) == pytest.approx(4.0, rel=0.1)


def test_engines_that_slow_down_are_noticed_before_anything_ends():
    predictor = WaitPredictor(30)
    now = steady(predictor, slots=4, tokens=100, residence=2.0, rounds=3)
    assert predictor.wait(400, now + 1.0) == pytest.approx(2.0, rel=0.25)
    assert predictor.wait(400, now + 20.0) == pytest.approx(20.0)


def test_what_is_long_ago_counts_little():
    predictor = WaitPredictor(10)
    now = steady(predictor, slots=2, tokens=100, residence=8.0, rounds=5)
    later = now + 100.0
    for _ in range(2):
        predictor.ended(100, now, now + 8.0)
    for second in range(60):
        for _ in range(2):
            predictor.placed(100, later + second)
        for _ in range(2):
            predictor.ended(100, later + second, later + second + 1.0)
    for _ in range(2):
        predictor.placed(100, later + 60.0)
    assert predictor.wait(200, later + 60.0) == pytest.approx(1.0, rel=0.1)


def test_the_short_ones_that_end_first_do_not_make_the_fleet_look_fast():
    predictor = WaitPredictor(30)
    for _ in range(10):
        predictor.placed(100, 0.0)
    predictor.ended(100, 0.0, 0.1)
    predictor.placed(100, 0.1)
    # Ten requests spent 0.1 s and one ended: one request per second, not a hundred.
    assert predictor.wait(1000, 0.1) == pytest.approx(1.0, rel=0.1)


def test_answers_that_take_no_time():
    predictor = WaitPredictor(30)
    predictor.placed(1, 0.0)
    predictor.ended(1, 0.0, 0.0)
    predictor.placed(1, 0.0)
    assert predictor.wait(1000, 0.0) == pytest.approx(0.001)


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0.001, 600), st.booleans()), min_size=1),
)
def test_it_never_predicts_nonsense(requests):
    predictor, now = WaitPredictor(30), 1000.0
    for tokens, seconds, ends in requests:
        predictor.placed(tokens, now)
        now += seconds
        if ends:
            predictor.ended(tokens, now - seconds, now)
        wait = predictor.wait(100, now)
        assert wait is None or wait >= 0
    assert predictor.outstanding_tokens == sum(tokens for tokens, _, ends in requests if not ends)
