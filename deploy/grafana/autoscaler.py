"""The autoscaler: what it asks for, why, and whether it sees and acts at all."""

from panels import RATE, Panel, Query, dashboard, quantiles, rate

_STATE = [
    Panel("Target", "short", [Query("max(moe_autoscaler_target_groups)", "")],
          "Groups that the last decision asks for.", stat=True),
    Panel("Ready", "short", [Query('max(moe_groups{state="ready"})', "")],
          "Groups that take work, as one router sees it.", stat=True),
    Panel("Blind", "short", [Query("max(moe_autoscaler_blind)", "")],
          "1: no signal can be used, the number of groups is held. Does Prometheus scrape the "
          "routers?", stat=True),
    Panel("Leaders", "short", [Query("sum(moe_autoscaler_leader)", "")],
          "Must be 1: none decides at 0, and more than one cannot be.", stat=True),
    Panel("GPU-hours today", "short", [Query("max(moe_autoscaler_gpu_hours_today)", "")],
          "Since 0:00 UTC, against autoscaler.gpu_hours_per_day.", stat=True),
    Panel("Failures", "short",
          [Query("sum(increase(moe_autoscaler_failures_total[1h]))", "")],
          "In the last hour; its log has the words.", stat=True),
]  # fmt: skip

_DECISIONS = [
    Panel("Groups", "short",
          [Query("max(moe_autoscaler_target_groups)", "target"),
           Query("max(moe_autoscaler_current_groups)", "asked for before"),
           Query('max(moe_groups{state="ready"})', "ready")],
          "Target above ready for long: groups do not start (moe-serving status, Ray, nodes)."),
    Panel("Votes", "short",
          [Query("max by (rule) (moe_autoscaler_vote_groups)", "{{rule}}")],
          "Groups that each rule votes for. The largest counts, within windows, step and limits."),
    Panel("Decisions", "short",
          [Query("sum by (action) (increase(moe_autoscaler_decisions_total[5m]))", "{{action}}")],
          "In five minutes. Many turns of up and down: widen the band or the windows."),
    Panel("Failures by stage", "ops", [rate("moe_autoscaler_failures_total", "stage")],
          "What did not answer, a second: prometheus, routers, target, scale, state, leader, nodes."),
    Panel("Node hand-overs", "short",
          [Query("sum(increase(moe_autoscaler_node_handovers_total[1h]))", "groups")],
          "Groups that were drained in an hour because a node goes."),
]  # fmt: skip

_SIGNALS = [
    Panel("Latencies that it goes by", "s",
          [Query(quantiles(metric, 0.9)[0].expr, name) for metric, name in (
              ("moe_time_to_first_token_seconds", "p90 TTFT"),
              ("moe_inter_token_latency_seconds", "p90 ITL"),
              ("moe_admission_wait_seconds", "p90 queue wait"))],
          "Over the objectives ttft_slo, itl_slo and queue_wait_slo: the pressure."),
    Panel("Tokens and queue", "short",
          [rate("moe_generated_tokens_total", legend="generated a second"),
           Query("sum(moe_admission_queue_tokens)", "queued")],
          "Against group_tokens_per_second, or what was learnt of it."),
    Panel("Requests", "short",
          [Query("sum(moe_inflight_requests)", "in flight"),
           Query("sum(moe_parked_requests)", "parked"),
           Query(f"sum(rate(moe_time_to_first_token_seconds_count[{RATE}]))", "begun a second")],
          "None for idle_timeout, and the last group goes; one that is parked brings the first."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-autoscaler",
    "MoE serving / Autoscaler",
    "How many groups are asked for, why, and whether the autoscaler sees and acts.",
    {"State": _STATE, "Decisions": _DECISIONS, "What it sees": _SIGNALS},
)
