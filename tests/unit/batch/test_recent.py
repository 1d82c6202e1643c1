from prometheus_client import CollectorRegistry, Histogram

from serving.batch.recent import RecentQuantile


def test_only_the_last_looks_count():
    histogram = Histogram("x", "y", buckets=(1, 2, 3), registry=CollectorRegistry())
    recent = RecentQuantile(histogram, looks=2)
    assert not recent.above(1, 0.1)
    for value in (5, 5, 0.5):
        recent.look()
        histogram.observe(value)
    recent.look()
    # 5 and 0.5 are within the last two looks.
    assert recent.above(1, 0.49)
    assert not recent.above(1, 0.5)
    recent.look()
    assert not recent.above(1, 0.1)


def test_without_values_nothing_is_above():
    histogram = Histogram("x", "y", registry=CollectorRegistry())
    recent = RecentQuantile(histogram, looks=2)
    recent.look()
    recent.look()
    assert not recent.above(0.001, 0.0)
