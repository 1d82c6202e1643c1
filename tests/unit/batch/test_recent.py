from serving.batch.recent import RecentQuantile
from serving.telemetry import fleet_metrics
from serving.telemetry.model_counters import Distribution


def test_only_the_last_looks_count():
    pools = [Distribution(fleet_metrics.POOL_TIME_TO_FIRST_TOKEN) for _ in range(2)]
    recent = RecentQuantile(lambda: [pool.buckets() for pool in pools], looks=2)
    assert not recent.above(1, 0.1)
    for value, pool in ((500, pools[0]), (500, pools[1]), (0.5, pools[0])):
        recent.look()
        pool.observe(value)
    recent.look()
    # 500 and 0.5 are within the last two looks.
    assert recent.above(1, 0.49)
    assert not recent.above(1, 0.5)
    recent.look()
    assert not recent.above(1, 0.1)


def test_without_values_nothing_is_above():
    pool = Distribution(fleet_metrics.POOL_TIME_TO_FIRST_TOKEN)
    for pools in ([], [pool]):
        recent = RecentQuantile(lambda pools=pools: [each.buckets() for each in pools], looks=2)
        recent.look()
        recent.look()
        assert not recent.above(0.001, 0.0)
