"""The autoscaler dashboard: target, reasons, and whether its signals and actions work."""

from panels import RATE, Panel, Query, dashboard, quantiles, rate

_STATE = [
    Panel("Target", "short", [Query("max(moe_autoscaler_target_groups)", "")],
          "Groups requested by the last decision.", stat=True),
    Panel("Ready", "short", [Query('max(moe_groups{state="ready"})', "")],
          "Groups that serve requests, as reported by one router.", stat=True),
    Panel("Blind", "short", [Query("max(moe_autoscaler_blind)", "")],
          "1: no signal is usable, and the number of groups does not change. Check that Prometheus "
          "scrapes the routers.", stat=True),
    Panel("Leaders", "short", [Query("sum(moe_autoscaler_leader)", "")],
          "Must be 1. At 0, no autoscaler decides.", stat=True),
    Panel("GPU-hours today", "short", [Query("max(moe_autoscaler_gpu_hours_today)", "")],
          "GPU-hours since 0:00 UTC; the limit is autoscaler.gpu_hours_per_day.", stat=True),
    Panel("Failures", "short",
          [Query("sum(increase(moe_autoscaler_failures_total[1h]))", "")],
          "Failures in the last hour; see the autoscaler's log.", stat=True),
]  # fmt: skip

_DECISIONS = [
    Panel("Groups", "short",
          [Query("max(moe_autoscaler_target_groups)", "target"),
           Query("max(moe_autoscaler_current_groups)", "requested before"),
           Query('max(moe_groups{state="ready"})', "ready")],
          "If the target stays above ready, groups do not start: check moe-serving status, Ray and "
          "nodes."),
    Panel("Votes", "short",
          [Query("max by (rule) (moe_autoscaler_vote_groups)", "{{rule}}")],
          "Groups that each rule votes for. The largest vote counts, within windows, step and limits."),
    Panel("Decisions", "short",
          [Query("sum by (action) (increase(moe_autoscaler_decisions_total[5m]))", "{{action}}")],
          "Decisions in 5 minutes. If it alternates between up and down, widen the band or windows."),
    Panel("Failures by stage", "ops", [rate("moe_autoscaler_failures_total", "stage")],
          "Failures/s by stage: prometheus, routers, target, scale, state, leader, nodes."),
    Panel("Node hand-overs", "short",
          [Query("sum(increase(moe_autoscaler_node_handovers_total[1h]))", "groups")],
          "Groups drained in the last hour because their node is being removed."),
]  # fmt: skip

_SIGNALS = [
    Panel("Latencies used by the policy", "s",
          [Query(quantiles(metric, 0.9)[0].expr, name) for metric, name in (
              ("moe_time_to_first_token_seconds", "p90 TTFT"),
              ("moe_inter_token_latency_seconds", "p90 ITL"),
              ("moe_admission_wait_seconds", "p90 queue wait"))],
          "The latency rule divides these by ttft_slo, itl_slo and queue_wait_slo."),
    Panel("Tokens and queue", "short",
          [rate("moe_generated_tokens_total", legend="generated/s"),
           Query("sum(moe_admission_queue_tokens)", "queued")],
          "Compare with group_tokens_per_second, or its learned value."),
    Panel("Requests", "short",
          [Query("sum(moe_inflight_requests)", "in flight"),
           Query("sum(moe_parked_requests)", "parked"),
           Query(f"sum(rate(moe_time_to_first_token_seconds_count[{RATE}]))", "started/s")],
          "After idle_timeout without requests, the last group is removed; a parked request adds "
          "the first one."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-autoscaler",
    "MoE serving / Autoscaler",
    "Requested groups, the reasons, and whether the autoscaler's signals and actions work.",
    {"State": _STATE, "Decisions": _DECISIONS, "Signals": _SIGNALS},
)
