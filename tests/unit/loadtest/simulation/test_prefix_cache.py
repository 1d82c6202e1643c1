from loadtest.simulation.prefix_cache import PrefixCache
from loadtest.simulation.simulated_request import SimulatedRequest, TraceNames
from tests.unit.loadtest.simulation.worlds import calibration, world

BLOCK = 16


def names(*ids, tokens=None):
    return TraceNames(tokens or len(ids) * BLOCK, ids, 0, BLOCK)


def test_what_was_computed_is_found_again():
    cache = PrefixCache(BLOCK)
    assert cache.matched(names(1, 2, 3)) == 0
    cache.store(names(1, 2, 3))
    # The last token is always computed, so a whole prompt never matches to its end.
    assert cache.matched(names(1, 2, 3)) == 2 * BLOCK
    assert cache.matched(names(1, 2, 3, 4)) == 3 * BLOCK
    assert cache.matched(names(1, 9, 3)) == BLOCK


def test_what_is_held_stays_and_ends_go_first():
    cache = PrefixCache(BLOCK)
    cache.store(names(1, 2, 3))
    cache.store(names(1, 5))
    cache.release(names(1, 2, 3))
    cache.trim(1)
    assert cache.removed[0] == names(3).all(BLOCK)[0]
    assert cache.matched(names(1, 2, 9)) == 2 * BLOCK
    cache.release(names(1, 5))
    cache.trim(0)
    assert len(cache) == 0


def test_a_report_is_what_changed_since_the_last():
    cache = PrefixCache(BLOCK)
    cache.store(names(1, 2))
    assert cache.report() == ([], names(1, 2).all(BLOCK))
    cache.release(names(1, 2))
    cache.trim(0)
    assert cache.report() == (list(reversed(names(1, 2).all(BLOCK))), [])


def test_routing_finds_the_rank_that_has_the_prefix():
    """Ten turns of a conversation on two groups: the real index routes all to one rank."""
    cal = calibration(prefix_caching=True)
    ids = tuple(range(1, 40))
    turns = [
        SimulatedRequest(turn, float(turn), (10 + turn) * BLOCK, 4, names(*ids[: 10 + turn]))
        for turn in range(10)
    ]
    run = world(cal, groups=2, seconds=20.0)
    found = run.run(turns)
    assert found.cached_tokens == sum((9 + turn) * BLOCK for turn in range(1, 10))
