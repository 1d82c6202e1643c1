"""Plain counts by model and pool, as histograms."""

import pytest
from prometheus_client import CollectorRegistry, Histogram

from serving.telemetry import fleet_metrics as metrics
from serving.telemetry.model_counters import Distribution, ModelCounters


@pytest.mark.parametrize(
    "family",
    [
        metrics.POOL_TIME_TO_FIRST_TOKEN,
        metrics.POOL_INTER_TOKEN_LATENCY,
        metrics.MODEL_ADMISSION_WAIT,
    ],
    ids=lambda family: family.name,
)
def test_it_counts_as_the_client_library_does(family):
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", buckets=family.buckets, registry=registry)
    ours = Distribution(family)
    for value in (0.0, *family.buckets, *(each * 1.01 for each in family.buckets), 1e6):
        theirs.observe(value)
        ours.observe(value)
    expected = {
        sample.labels["le"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "x_bucket"
    }
    assert dict(ours.buckets()) == expected
    assert ours.total == pytest.approx(registry.get_sample_value("x_sum"))


def test_each_pool_has_its_own_counts():
    counters = ModelCounters(["a", "b"])
    counters.pools["a"].first_token.observe(0.1)
    assert counters.pools["b"].first_token.buckets()[-1] == ("+Inf", 0.0)
    assert counters.pools["a"].first_token.buckets()[-1] == ("+Inf", 1.0)
