"""The comparison of routings: the sentence on two tallies."""

import pytest

from loadtest.demos.affinity import Tally, saving


def tally(times, prompt=100, cached=25):
    return Tally(prompt, cached, dict(times))


def test_a_row_has_rate_and_quantiles():
    row = tally({0: 0.1, 1: 0.2, 2: 0.3}).row("affinity").split()
    assert row == ["affinity", "3", "0", "25.0%", "200", "300", "200"]


def test_a_row_of_nothing():
    assert Tally().row("x").split() == ["x", "0", "0", "0.0%", "0", "0", "0"]


@pytest.mark.parametrize(
    ("affinity", "alone", "words"),
    [
        pytest.param(
            dict.fromkeys(range(20), 0.1),
            dict.fromkeys(range(20), 0.2),
            "saves 100 ms of 200 ms to the first token (50%; 95 % of 2000 resamples of the 20 "
            "pairs: 100 to 100 ms); 20 requests",
            id="always quicker",
        ),
        pytest.param(
            {0: 0.3, 1: 0.1}, {0: 0.1, 1: 0.3}, "saves 0 ms of 200 ms", id="no difference"
        ),
        pytest.param({0: 0.1}, {1: 0.1}, "no request succeeded with both routings", id="no pair"),
    ],
)
def test_saving(affinity, alone, words):
    assert words in saving(tally(affinity), tally(alone))
