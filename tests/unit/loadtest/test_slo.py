import heapq
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.slo import Slo, attainment, search
from tests.unit.loadtest.records import record


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        pytest.param(Slo(), True, id="no-limit"),
        pytest.param(Slo(ttft=0.1001, itl=0.0201, latency=0.3001), True, id="all"),
        pytest.param(Slo(ttft=0.09), False, id="ttft"),
        pytest.param(Slo(itl=0.019), False, id="itl"),
        pytest.param(Slo(latency=0.29), False, id="latency"),
    ],
)
def test_limits(slo, met):
    assert slo.met_by(record()) is met


def test_latency_counts_from_when_the_request_was_due():
    late = record(sent=0.5, first=0.6, end=0.8)
    assert late.ttft == pytest.approx(0.6)
    assert not Slo(ttft=0.2).met_by(late)


def test_failures_count_and_cancelled_ones_do_not():
    seen = [record(), record(1, error="broken"), record(2, error="cancelled")]
    assert attainment(seen, Slo()) == 0.5
    assert attainment(seen[2:], Slo()) is None


def test_one_token_has_no_inter_token_latency():
    assert record(output_tokens=1).itl is None


@given(st.floats(0.1, 900), st.floats(0.5, 100))
async def test_the_answer_is_just_below_where_it_breaks(edge, start):
    found = await search(_sharp(edge), start=start, most=1000, halvings=12)
    assert found.bounded
    assert edge / 1.06 <= found.rate <= edge


def _sharp(edge):
    async def attempt(rate):
        return rate <= edge, 1.0 if rate <= edge else 0.5

    return attempt


@pytest.mark.parametrize(
    ("edge", "rate", "bounded"),
    [
        pytest.param(5000, 100, False, id="never-breaks"),
        pytest.param(0, None, True, id="never-holds"),
    ],
)
async def test_searches_without_an_edge(edge, rate, bounded):
    found = await search(_sharp(edge), start=4, most=100)
    assert (found.rate, found.bounded) == (rate, bounded)


async def test_a_rate_that_held_by_luck_is_lowered_until_it_holds_in_a_row():
    luck = iter([True, False])
    confirmed = []

    async def attempt(rate):
        lucky = next(luck, None)
        if lucky is not None:
            return lucky, 1.0
        confirmed.append(rate)
        return rate <= 3.5, 1.0

    found = await search(attempt, start=4, most=100, precision=0.2)
    assert found.rate <= 3.5
    assert [trial.purpose for trial in found.trials[-2:]] == ["confirm", "confirm"]
    assert confirmed[-1] == confirmed[-2] == found.rate


async def test_the_answer_for_a_queue_holds_when_run_again():
    """Four servers of 0.2 s with random arrivals: 99 % wait less than 0.1 s up to about 7.5/s."""
    answers = []
    for seed in range(8):
        numbers = itertools.count()

        async def attempt(rate, seed=seed, numbers=numbers):
            share = _share(rate, 1000, f"{seed}/{next(numbers)}")
            return share >= 0.99, share

        answers.append((await search(attempt, start=4, most=100)).rate)
    for answer in answers:
        # One trial is a sample: a tenth lower it holds in a long one.
        assert _share(answer * 0.9, 20_000, "again") >= 0.99
        assert 6 < answer < 8.5


def _share(rate, count, seed):
    rng = random.Random(seed)
    free, now, fine = [0.0] * 4, 0.0, 0
    for _ in range(count):
        now += rng.expovariate(rate)
        begin = max(free[0], now)
        heapq.heapreplace(free, begin + 0.2)
        fine += begin - now <= 0.1
    return fine / count
