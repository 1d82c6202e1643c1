from collections import Counter

import pytest

from loadtest.simulation.trace_arrivals import Load, arrivals
from loadtest.trace import TRACE_BLOCK, generated_requests

TRACE = generated_requests(600, seed=3)
LENGTH = TRACE[-1].at - TRACE[0].at


def sent(low, high, seconds=LENGTH, **options):
    return list(
        arrivals(TRACE, Load(low, high, seconds), block=TRACE_BLOCK, longest=4096, **options)
    )


def test_one_copy_is_the_trace():
    found = sent(1, 1)
    assert [s.at for s in found] == pytest.approx([r.at - TRACE[0].at for r in TRACE][: len(found)])
    assert len(found) >= len(TRACE) - 1
    assert all(s.prompt_tokens + s.output_tokens <= 4096 for s in found)


@pytest.mark.parametrize(
    ("low", "high", "sample", "copies"),
    [
        pytest.param(5, 5, 1, 5, id="five copies"),
        pytest.param(10, 10, 5, 2, id="a fifth of ten"),
        pytest.param(0.5, 0.5, 1, 0.5, id="half a copy"),
        pytest.param(1, 9, 1, 5, id="up and down"),
    ],
)
def test_as_many_requests_as_the_load_says(low, high, sample, copies):
    found = sent(low, high, sample=sample)
    assert len(found) == pytest.approx(copies * len(TRACE), rel=0.25)
    assert [s.at for s in found] == sorted(s.at for s in found)
    assert [s.number for s in found] == list(range(len(found)))


def test_the_load_rises_and_falls():
    times = Counter(int(5 * s.at / LENGTH) for s in sent(1, 21))
    assert times[0] < times[1] < times[2]
    assert times[4] < times[3] < times[2]


def test_a_longer_replay_goes_round():
    found = sent(1, 1, seconds=2.5 * LENGTH)
    assert len(found) == pytest.approx(2.5 * len(TRACE), rel=0.05)


def test_copies_share_the_system_prompt_alone():
    first, second = (
        {name for s in sent(2, 2) for name in s.names.all(TRACE_BLOCK) if name % (1 << 20) == copy}
        for copy in (1, 2)
    )
    assert first
    assert second
    assert not first & second


def test_equal_seeds_send_equal_requests():
    def shape(seed):
        return [(s.at, s.prompt_tokens) for s in sent(3, 3, seed=seed)]

    assert shape(2) == shape(2)
    assert shape(2) != shape(4)
