"""The fleet dashboard: latencies, queues, failures, and utilization of the ranks."""

from panels import GROUP, RATE, Panel, Query, dashboard, of_rank, quantiles, rate, rate_of_rank

BLAMELESS = 'outcome!~"OK|CANCELLED|INVALID_REQUEST|UNAUTHENTICATED|PERMISSION_DENIED"'

_OVERVIEW = [
    Panel("Ready groups", "short", [Query('max(moe_groups{state="ready"})', "")],
          "Groups that serve requests, as reported by one router.", stat=True),
    Panel("Requests", "reqps", [rate("moe_requests_total")],
          "Requests/s that ended, with any outcome.", stat=True),
    Panel("Failed", "percentunit",
          [Query(f"sum(rate(moe_requests_total{{{BLAMELESS}}}[{RATE}])) / "
                 f"sum(rate(moe_requests_total[{RATE}]))", "")],
          "Share of requests that failed for server-side reasons, refusals included.", stat=True),
    Panel("Generated tokens", "short", [rate("moe_generated_tokens_total")],
          "Output tokens/s to clients.", stat=True),
    Panel("In flight", "short", [Query("sum(moe_inflight_requests)", "")],
          "Requests in the routers, queued ones included.", stat=True),
    Panel("Parked", "short", [Query("sum(moe_parked_requests)", "")],
          "Requests that wait because no group is ready. Above 0, a group is needed now.",
          stat=True),
]  # fmt: skip

_CLIENTS = [
    Panel("Time to first token", "s",
          [*quantiles("moe_time_to_first_token_seconds", 0.5, 0.9, 0.99),
           Query(quantiles("moe_rank_time_to_first_token_seconds", 0.9)[0].expr, "p90 on the rank")],
          "From arrival, as clients measure it; the last line excludes the wait in the queue."),
    Panel("Inter-token latency", "s",
          quantiles("moe_inter_token_latency_seconds", 0.5, 0.9, 0.99),
          "Time between tokens of a request. High values: large batches, imbalance, or a slow rank."),
    Panel("Duration", "s", quantiles("moe_request_seconds", 0.5, 0.9, 0.99),
          "Time from arrival to end of a request."),
    Panel("Requests by outcome", "reqps", [rate("moe_requests_total", "outcome")],
          "Requests/s by outcome; see deploy/docs/errors.md."),
    Panel("Tokens", "short",
          [rate("moe_prompt_tokens_total", legend="prompt"),
           rate("moe_cached_prompt_tokens_total", legend="cached prompt"),
           rate("moe_generated_tokens_total", legend="generated")],
          "Prompt, cached and generated tokens/s."),
    Panel("Tokens by tenant", "short",
          [Query(f"topk(10, sum by (tenant, kind) (rate(moe_tenant_tokens_total[{RATE}])))",
                 "{{tenant}} {{kind}}")],
          "Tokens/s of the ten largest tenants; those beyond telemetry.tenant_labels are other."),
]  # fmt: skip

_ADMISSION = [
    Panel("Queue", "short",
          [Query("sum by (priority) (moe_admission_queue_requests)", "{{priority}}")],
          "Queued requests. If it stays above 0, add groups."),
    Panel("Wait", "s", quantiles("moe_admission_wait_seconds", 0.9, 0.99, by="priority"),
          "Time that placed requests spent in the queue; 0 for most."),
    Panel("Error of the predicted wait", "s",
          quantiles("moe_admission_wait_error_seconds", 0.1, 0.5, 0.9),
          "Actual minus predicted wait of queued requests. If there is a steady bias, check "
          "admission.rate_window."),
    Panel("Predicted wait", "s", quantiles("moe_admission_predicted_wait_seconds", 0.5, 0.9),
          "Predicted wait of queued requests."),
    Panel("Queued tokens", "short", [Query("sum(moe_admission_queue_tokens)", "queued")],
          "Prompt and expected output tokens of queued requests."),
    Panel("Refusals", "reqps", [rate("moe_admission_refusals_total", "reason")],
          "Refusals/s. queue_full and predicted_wait: too few groups; the others: a tenant's quota."),
]  # fmt: skip

_ROUTING = [
    Panel("Routing decisions", "reqps", [rate("moe_routing_picks_total", "reason")],
          "Decisions/s by the reason for the chosen rank."),
    Panel("Choosing a rank", "s",
          [*quantiles("moe_routing_seconds", 0.5, 0.99),
           Query(f"sum by (scorer) (rate(moe_routing_scorer_seconds_total[{RATE}])) / "
                 f"ignoring (scorer) group_left sum(rate(moe_routing_seconds_count[{RATE}]))",
                 "mean in {{scorer}}")],
          "Duration of a decision, and its mean share in each scorer."),
    Panel("Prompt tokens from caches", "percentunit",
          [Query(f"sum(rate(moe_cached_prompt_tokens_total[{RATE}])) / "
                 f"sum(rate(moe_prompt_tokens_total[{RATE}]))", "actual"),
           Query(f"sum(rate(moe_prefix_matched_tokens_total[{RATE}])) / "
                 f"sum(rate(moe_prompt_tokens_total[{RATE}]))", "expected by routing")],
          "Cached share of prompt tokens. If the expected share is far above the actual one, "
          "caches change faster than ranks report."),
]  # fmt: skip

_FAILURES = [
    Panel("Groups", "short", [Query("max by (state) (moe_groups)", "{{state}}")],
          "Groups by state, from the router that sees most; /fleet has the reasons."),
    Panel("Ranks missing", "short",
          [Query(f"max by (group) (moe_ranks_expected{{{GROUP}}}) - "
                 f"max by (group) (moe_ranks_joined{{{GROUP}}})", "{{group}}")],
          "Above 0, the group is incomplete and gets no requests."),
    Panel("Groups fenced", "short", [Query(f"sum(increase(moe_groups_fenced_total[{RATE}]))", "fenced")],
          "Groups taken out of service because a rank was lost, failed or stalled."),
    Panel("Resumptions", "reqps", [rate("moe_resumes_total", "way, outcome")],
          "Requests/s that lost their group, by method of resumption and outcome."),
    Panel("Gap of a resumption", "s", quantiles("moe_resume_seconds", 0.5, 0.9),
          "From the loss of the group to the next new token."),
    Panel("Link round trip", "s", [of_rank("moe_rank_link_round_trip_seconds")],
          "Above 0.1 s: a process gets too little CPU, or the network is bad."),
    Panel("Age of reports", "s",
          [Query(f"time() - max by (group, rank) (moe_rank_report_timestamp_seconds{{{GROUP}}})",
                 "{{group}} {{rank}}")],
          "Ranks report every link.load_interval; above 5 s, the values here are stale."),
]  # fmt: skip

_RANKS = [
    Panel("Running", "short", [of_rank("moe_rank_running_requests")],
          "Requests in the engine's batch, which is full at engine.max_num_seqs."),
    Panel("Waiting in the engine", "short", [of_rank("moe_rank_waiting_requests")],
          "Above 0, the batch or the KV cache is full."),
    Panel("KV cache in use", "percentunit", [of_rank("moe_rank_kv_usage_ratio")],
          "Near 1, requests are preempted."),
    Panel("Step", "s",
          [Query(f"{rate_of_rank('moe_rank_busy_seconds_total')} / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Mean duration of an engine step."),
    Panel("Busy", "percentunit",
          [Query(rate_of_rank("moe_rank_busy_seconds_total"), "{{group}} {{rank}}")],
          "Share of time that the engine spends in steps."),
    Panel("Tokens per step", "short",
          [Query(f"({rate_of_rank('moe_rank_prompt_tokens_total')} + "
                 f"{rate_of_rank('moe_rank_generated_tokens_total')}) / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Prompt and generated tokens of a step: how full the batches are."),
    Panel("Outstanding tokens", "short",
          [Query(f"sum by (group, rank) (moe_rank_outstanding_tokens{{{GROUP}}})",
                 "{{group}} {{rank}}")],
          "Tokens still to be computed, over all routers; routing balances these."),
    Panel("Memory", "bytes", [of_rank("moe_rank_resident_bytes")],
          "Resident memory of the rank's processes."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-fleet",
    "MoE serving / Fleet",
    "Latencies, queues, failures, and how full the ranks are.",
    {
        "Overview": _OVERVIEW,
        "Clients": _CLIENTS,
        "Admission": _ADMISSION,
        "Routing": _ROUTING,
        "Groups, failures, links": _FAILURES,
        "Ranks": _RANKS,
    },
)
