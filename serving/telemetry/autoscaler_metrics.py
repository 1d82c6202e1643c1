"""Prometheus metrics of an autoscaler process."""

from prometheus_client import CollectorRegistry, Counter, Gauge

AUTOSCALER_REGISTRY = CollectorRegistry()
"""Metrics that an autoscaler exports on /metrics."""

AUTOSCALER_TARGET = Gauge(
    "moe_autoscaler_target_groups",
    "Groups that the last decision requests.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_CURRENT = Gauge(
    "moe_autoscaler_current_groups",
    "Groups requested before the last decision.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_BLIND = Gauge(
    "moe_autoscaler_blind",
    "1 while no Prometheus signal is usable and the number of groups is held.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_DECISIONS = Counter(
    "moe_autoscaler_decisions",
    "Decisions, by action: up, down, hold.",
    ["action"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_FAILURES = Counter(
    "moe_autoscaler_failures",
    "Failures, by stage: prometheus, routers, target, scale, state, leader, nodes.",
    ["stage"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_VOTES = Gauge(
    "moe_autoscaler_vote_groups",
    "Groups that a rule votes for; absent for a rule that abstains.",
    ["rule"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_GPU_HOURS = Gauge(
    "moe_autoscaler_gpu_hours_today",
    "GPU-hours of the groups since 0:00 UTC.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_POOL_TARGET = Gauge(
    "moe_autoscaler_pool_target_groups",
    "Groups of the pool that the last decision requests, within the limits of all pools.",
    ["model", "pool"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_POOL_CURRENT = Gauge(
    "moe_autoscaler_pool_current_groups",
    "Groups of the pool requested before the last decision.",
    ["model", "pool"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_POOL_WANTED = Gauge(
    "moe_autoscaler_pool_wanted_groups",
    "Groups that the pool would get without the limits that all pools share.",
    ["model", "pool"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_POOL_VOTES = Gauge(
    "moe_autoscaler_pool_vote_groups",
    "Groups that a rule votes for; absent for a rule that abstains.",
    ["model", "pool", "rule"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_LEADER = Gauge(
    "moe_autoscaler_leader",
    "1 while this process holds the lease and decides.",
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_WATCHING = Gauge(
    "moe_autoscaler_watching",
    "1 while the watch on nodes or pods (kind) is established; at 0, known objects may be stale.",
    ["kind"],
    registry=AUTOSCALER_REGISTRY,
)
AUTOSCALER_HANDOVERS = Counter(
    "moe_autoscaler_node_handovers",
    "Groups drained because one of their nodes is being removed.",
    registry=AUTOSCALER_REGISTRY,
)
