import random

import pytest

from loadtest.slo import Slo
from loadtest.statistics import bootstrap_ratio, compare, summarize
from tests.unit.loadtest.records import record


def test_summary_of_a_stage():
    seen = [
        record(0, phase="warmup", first=9.0, end=9.5),
        *(record(index) for index in range(1, 9)),
        record(9, error="broken", message="gone", first=None),
        record(10, first=10.5, end=10.7),
    ]
    summary = summarize(seen, Slo(ttft=0.2), 10.0)
    assert (summary.requests, summary.ok, summary.errors) == (10, 9, {"broken": 1})
    assert summary.failed == 1
    cancelled = record(11, error="cancelled", message="decided", first=None)
    assert summarize([*seen, cancelled], Slo(ttft=0.2), 10.0).failed == 1
    assert summary.offered == 1.0
    assert summary.attained == 0.8
    # From 1 s, when the first request was due, to the end of the last at 10.7 s.
    assert summary.busy == pytest.approx(9.7)
    assert summary.goodput == pytest.approx(8 / 9.7)
    assert summary.tokens == 9 * 11
    assert summary.output_tokens == pytest.approx(9 * 11 / 9.7)
    assert summary.ttft.p50 == pytest.approx(0.1)
    assert summary.itl.mean == pytest.approx(0.02)


def test_no_request_is_no_error():
    summary = summarize([], Slo(), 10.0)
    assert summary.requests == summary.completed == 0
    assert summary.attained is None


def test_equal_runs_do_not_differ_and_slower_ones_do():
    rng = random.Random(1)

    def run(factor):
        return [record(i, first=i + factor * rng.gauss(0.1, 0.01)) for i in range(200)]

    same = {one.name: one for one in compare(run(1.0), run(1.0))}
    slower = {one.name: one for one in compare(run(1.0), run(1.2))}
    assert not same["TTFT mean"].clear
    assert slower["TTFT mean"].clear
    assert slower["TTFT mean"].low < 1.2 < slower["TTFT mean"].high


def test_the_interval_covers_as_often_as_it_says():
    rng = random.Random(2)
    inside = 0
    for seed in range(100):
        a, b = ([rng.expovariate(1) for _ in range(60)] for _ in range(2))
        found = bootstrap_ratio("x", a, b, lambda rows: rows.mean(axis=1), resamples=300, seed=seed)
        inside += not found.clear
    assert inside >= 88


@pytest.mark.parametrize(
    ("a", "b"), [pytest.param([], [1.0], id="empty"), pytest.param([0.0], [1.0], id="zero")]
)
def test_nothing_to_compare(a, b):
    assert bootstrap_ratio("x", a, b, lambda rows: rows.mean(axis=1)) is None
