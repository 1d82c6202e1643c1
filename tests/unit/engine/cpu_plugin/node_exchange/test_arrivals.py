"""When a rank spins, and when it sleeps at once."""

import pytest

from serving.engine.cpu_plugin.node_exchange.arrivals import Spin


@pytest.mark.parametrize(
    ("results", "spins_of_100"),
    [
        pytest.param([True], 100, id="always-worth-it"),
        # After 1, 3, 7, 15, 31 and then always 63 waits without spinning.
        pytest.param([False], 6, id="never"),
        pytest.param([False, True], 67, id="every-other-time"),
    ],
)
def test_spins_in_vain_become_rare_and_one_success_restores_them(results, spins_of_100):
    spin, spins = Spin(), 0
    for _ in range(100):
        if spin.due():
            spin.done(arrived=results[spins % len(results)])
            spins += 1
    assert spins == spins_of_100
