"""Metrics of groups and ranks, read at every scrape.

Only joined groups are exported: a group's series end when the group is gone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from serving.fleet.expert_balance import imbalances
from serving.fleet.models import ModelStatus
from serving.routing.snapshot import FleetSnapshot, MemberState, RankSnapshot
from serving.telemetry import fleet_metrics as metrics
from serving.telemetry.fleet_metrics import Family
from serving.telemetry.model_counters import Distribution, ModelCounters

_RANK_VALUES: tuple[tuple[Family, Callable[[RankSnapshot], float | None]], ...] = (
    (metrics.RANK_INFLIGHT, lambda rank: rank.inflight_requests),
    (metrics.RANK_OUTSTANDING, lambda rank: rank.outstanding_tokens),
    (metrics.RANK_RUNNING, lambda rank: rank.load.running_requests),
    (metrics.RANK_WAITING, lambda rank: rank.load.waiting_requests),
    (metrics.RANK_KV_USAGE, lambda rank: rank.load.kv_usage),
    (metrics.RANK_STEP_SECONDS, lambda rank: rank.load.step_seconds),
    (metrics.RANK_RESIDENT_BYTES, lambda rank: rank.load.resident_bytes),
    (metrics.RANK_LINK_LAG, lambda rank: rank.round_trip),
    (metrics.RANK_REPORTED, lambda rank: rank.reported_at or None),
    (metrics.RANK_BUSY_SECONDS, lambda rank: rank.load.busy_seconds_total),
    (metrics.RANK_GPUS, lambda rank: rank.tensor_parallel_size),
    (metrics.RANK_PROMPT_TOKENS, lambda rank: rank.load.prompt_tokens_total),
    (metrics.RANK_GENERATED_TOKENS, lambda rank: rank.load.generated_tokens_total),
    (metrics.RANK_ENGINE_STEPS, lambda rank: rank.load.engine_steps_total),
    (metrics.EXPERT_TOKENS, lambda rank: sum(rank.load.expert_tokens)),
    (metrics.RANK_ADAPTERS, lambda rank: _adapted(rank, len(rank.load.adapters))),
    (metrics.ADAPTER_REQUESTS, lambda rank: _adapted(rank, rank.load.adapter_requests_total)),
    (metrics.ADAPTER_LOADS, lambda rank: _adapted(rank, rank.load.adapter_loads_total)),
    (metrics.ADAPTER_EVICTIONS, lambda rank: _adapted(rank, rank.load.adapter_evictions_total)),
    (metrics.ADAPTER_FAILURES, lambda rank: _adapted(rank, rank.load.adapter_failures_total)),
    (metrics.MTP_PROPOSED, lambda rank: rank.load.mtp_proposed_tokens),
    (metrics.MTP_ACCEPTED, lambda rank: rank.load.mtp_accepted_tokens),
)
"""Functions that read each value from a rank; None means unknown, and the value is not exported."""


def fleet_registry(
    snapshot: Callable[[], FleetSnapshot],
    models: Callable[[], tuple[ModelStatus, ...]] = tuple,
    counters: Mapping[str, ModelCounters] | None = None,
) -> CollectorRegistry:
    """Return a registry with the fleet metrics of one router.

    Args:
        snapshot: Returns all groups of the router.
        models: Returns the state of all models.
        counters: Measurements of each model, by model name.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(snapshot, models, counters or {}))
    return registry


class FleetCollector(Collector):
    """Converts a fleet snapshot into metric families."""

    def __init__(
        self,
        snapshot: Callable[[], FleetSnapshot],
        models: Callable[[], tuple[ModelStatus, ...]],
        counters: Mapping[str, ModelCounters],
    ) -> None:
        self._snapshot = snapshot
        self._models = models
        self._counters = counters

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield the metric families of one snapshot."""
        fleet = self._snapshot()
        yield _by_state(fleet)
        yield from _by_model(fleet, self._models())
        yield from _measured(self._counters)
        yield _family(
            metrics.RANKS_JOINED,
            [((group.group_id,), len(group.ranks)) for group in fleet.groups],
        )
        yield _family(
            metrics.RANKS_EXPECTED,
            [((group.group_id,), group.world_size) for group in fleet.groups],
        )
        yield _family(
            metrics.EXPERT_IMBALANCE,
            [
                ((group.group_id, found.layers, over), value)
                for group in fleet.groups
                for found in imbalances(group)
                for over, value in (("experts", found.experts), ("ranks", found.ranks))
            ],
        )
        for family, value in _RANK_VALUES:
            yield _family(
                family,
                [
                    ((group.group_id, str(rank.rank)), number)
                    for group in fleet.groups
                    for rank in group.ranks
                    if (number := value(rank)) is not None
                ],
            )

    def describe(self) -> Iterator[Metric]:
        """Return no descriptions, so that registration does not need a snapshot."""
        return iter(())


def _adapted(rank: RankSnapshot, value: float) -> float | None:
    return value if rank.adapter_slots else None


def _by_state(fleet: FleetSnapshot) -> Metric:
    counts = Counter(group.state for group in fleet.groups)
    living = [state for state in MemberState if state is not MemberState.GONE]
    return _family(metrics.GROUPS, [((state.value,), counts[state]) for state in living])


def _by_model(fleet: FleetSnapshot, models: tuple[ModelStatus, ...]) -> Iterator[Metric]:
    yield _family(
        metrics.GROUP_INFO,
        [((group.group_id, group.model, group.pool, group.app), 1) for group in fleet.groups],
    )
    ready = Counter(
        (group.model, group.pool) for group in fleet.groups if group.state is MemberState.READY
    )
    pools = [(model.name, pool) for model in models for pool in model.pools]
    yield _family(metrics.POOL_READY_GROUPS, [(pool, ready[pool]) for pool in pools])
    yield _family(
        metrics.MODEL_QUEUED, [((model.name,), model.queued_requests) for model in models]
    )
    yield _family(
        metrics.MODEL_QUEUED_TOKENS, [((model.name,), model.queued_tokens) for model in models]
    )
    yield _family(
        metrics.MODEL_PARKED,
        [((model.name,), 0 if model.ready else model.queued_requests) for model in models],
    )
    yield _family(
        metrics.MODEL_ADAPTERS, [((model.name,), len(model.adapters)) for model in models]
    )
    yield _family(metrics.MODEL_LOADED, [((model.name,), model.loaded) for model in models])


def _measured(counters: Mapping[str, ModelCounters]) -> Iterator[Metric]:
    yield _histogram(
        metrics.MODEL_ADMISSION_WAIT, [((name,), model.wait) for name, model in counters.items()]
    )
    yield _family(
        metrics.MODEL_BATCH_LINES, [((name,), model.lines) for name, model in counters.items()]
    )
    pools = [
        ((name, pool), found)
        for name, model in counters.items()
        for pool, found in model.pools.items()
    ]
    yield _histogram(
        metrics.POOL_TIME_TO_FIRST_TOKEN, [(key, found.first_token) for key, found in pools]
    )
    yield _histogram(
        metrics.POOL_INTER_TOKEN_LATENCY, [(key, found.inter_token) for key, found in pools]
    )
    yield _family(
        metrics.POOL_GENERATED_TOKENS, [(key, found.generated_tokens) for key, found in pools]
    )
    yield _family(metrics.POOL_INFLIGHT, [(key, found.inflight_requests) for key, found in pools])


def _histogram(family: Family, values: list[tuple[tuple[str, ...], Distribution]]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, found in values:
        metric.add_metric(labels, found.buckets(), found.total)
    return metric


def _family(family: Family, values: list[tuple[tuple[str, ...], float]]) -> Metric:
    kind = CounterMetricFamily if family.counter else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, value in values:
        metric.add_metric(labels, value)
    return metric
