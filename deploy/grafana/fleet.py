"""The fleet: what clients see, where they wait, what fails, how full the ranks are."""

from panels import GROUP, RATE, Panel, Query, dashboard, of_rank, quantiles, rate, rate_of_rank

BLAMELESS = 'outcome!~"OK|CANCELLED|INVALID_REQUEST|UNAUTHENTICATED|PERMISSION_DENIED"'

_OVERVIEW = [
    Panel("Ready groups", "short", [Query('max(moe_groups{state="ready"})', "")],
          "Groups that take work, as one router sees it.", stat=True),
    Panel("Requests", "reqps", [rate("moe_requests_total")],
          "Requests that end, whatever the outcome.", stat=True),
    Panel("Failed", "percentunit",
          [Query(f"sum(rate(moe_requests_total{{{BLAMELESS}}}[{RATE}])) / "
                 f"sum(rate(moe_requests_total[{RATE}]))", "")],
          "Share of requests that failed for reasons of ours, refusals included.", stat=True),
    Panel("Generated tokens", "short", [rate("moe_generated_tokens_total")],
          "Tokens a second to clients.", stat=True),
    Panel("In flight", "short", [Query("sum(moe_inflight_requests)", "")],
          "Requests inside the routers, waiting ones included.", stat=True),
    Panel("Parked", "short", [Query("sum(moe_parked_requests)", "")],
          "Requests that wait because no group is ready. Above 0: a group is needed now.",
          stat=True),
]  # fmt: skip

_CLIENTS = [
    Panel("Time to first token", "s",
          [*quantiles("moe_time_to_first_token_seconds", 0.5, 0.9, 0.99),
           Query(quantiles("moe_rank_time_to_first_token_seconds", 0.9)[0].expr, "p90 on the rank")],
          "From arrival, as clients see it; the last line without the wait for a turn."),
    Panel("Inter-token latency", "s",
          quantiles("moe_inter_token_latency_seconds", 0.5, 0.9, 0.99),
          "Between tokens of a request. High: batches too large, imbalance, or a slow rank."),
    Panel("Duration", "s", quantiles("moe_request_seconds", 0.5, 0.9, 0.99),
          "From arrival to end."),
    Panel("Requests by outcome", "reqps", [rate("moe_requests_total", "outcome")],
          "deploy/docs/errors.md explains the outcomes."),
    Panel("Tokens", "short",
          [rate("moe_prompt_tokens_total", legend="prompt"),
           rate("moe_cached_prompt_tokens_total", legend="of it cached"),
           rate("moe_generated_tokens_total", legend="generated")],
          "Tokens a second."),
    Panel("Tokens by tenant", "short",
          [Query(f"topk(10, sum by (tenant, kind) (rate(moe_tenant_tokens_total[{RATE}])))",
                 "{{tenant}} {{kind}}")],
          "The ten largest; tenants beyond telemetry.tenant_labels are other."),
]  # fmt: skip

_ADMISSION = [
    Panel("Queue", "short",
          [Query("sum by (priority) (moe_admission_queue_requests)", "{{priority}}")],
          "Requests that wait for their turn. Standing above 0: add groups."),
    Panel("Wait", "s", quantiles("moe_admission_wait_seconds", 0.9, 0.99, by="priority"),
          "Of requests that were placed; 0 for most."),
    Panel("Seen less predicted wait", "s",
          quantiles("moe_admission_wait_error_seconds", 0.1, 0.5, 0.9),
          "Of requests that waited. A steady bias: admission.rate_window."),
    Panel("Predicted wait", "s", quantiles("moe_admission_predicted_wait_seconds", 0.5, 0.9),
          "What was promised to requests that waited."),
    Panel("Queued tokens", "short", [Query("sum(moe_admission_queue_tokens)", "queued")],
          "Prompt and expected output of what waits."),
    Panel("Refusals", "reqps", [rate("moe_admission_refusals_total", "reason")],
          "queue_full, predicted_wait: too little fleet; the others: a tenant's quota."),
]  # fmt: skip

_ROUTING = [
    Panel("Picks", "reqps", [rate("moe_routing_picks_total", "reason")],
          "What made the difference when a rank was chosen."),
    Panel("Choosing a rank", "s",
          [*quantiles("moe_routing_seconds", 0.5, 0.99),
           Query(f"sum by (scorer) (rate(moe_routing_scorer_seconds_total[{RATE}])) / "
                 f"ignoring (scorer) group_left sum(rate(moe_routing_seconds_count[{RATE}]))",
                 "mean in {{scorer}}")],
          "Time of a pick, and the mean in each scorer."),
    Panel("Prompt tokens from caches", "percentunit",
          [Query(f"sum(rate(moe_cached_prompt_tokens_total[{RATE}])) / "
                 f"sum(rate(moe_prompt_tokens_total[{RATE}]))", "real"),
           Query(f"sum(rate(moe_prefix_matched_tokens_total[{RATE}])) / "
                 f"sum(rate(moe_prompt_tokens_total[{RATE}]))", "expected by routing")],
          "Expected far above real: caches change faster than ranks tell."),
]  # fmt: skip

_FAILURES = [
    Panel("Groups", "short", [Query("max by (state) (moe_groups)", "{{state}}")],
          "As the router that sees most has it; /fleet says why."),
    Panel("Ranks missing", "short",
          [Query(f"max by (group) (moe_ranks_expected{{{GROUP}}}) - "
                 f"max by (group) (moe_ranks_joined{{{GROUP}}})", "{{group}}")],
          "Above 0: the gang is incomplete and gets no work."),
    Panel("Groups fenced", "short", [Query(f"sum(increase(moe_groups_fenced_total[{RATE}]))", "fenced")],
          "Each is a lost, failed or stalled rank."),
    Panel("Resumptions", "reqps", [rate("moe_resumes_total", "way, outcome")],
          "Requests that lost their group, and how that went."),
    Panel("Gap of a resumption", "s", quantiles("moe_resume_seconds", 0.5, 0.9),
          "From the loss of the group to the next new token."),
    Panel("Link round trip", "s", [of_rank("moe_rank_link_round_trip_seconds")],
          "Above 0.1 s: a starved process or a bad network."),
    Panel("Age of reports", "s",
          [Query(f"time() - max by (group, rank) (moe_rank_report_timestamp_seconds{{{GROUP}}})",
                 "{{group}} {{rank}}")],
          "Ranks report every link.load_interval; above 5 s what is shown is old."),
]  # fmt: skip

_RANKS = [
    Panel("Running", "short", [of_rank("moe_rank_running_requests")],
          "Requests in the engine's batch; at engine.max_num_seqs it is full."),
    Panel("Waiting in the engine", "short", [of_rank("moe_rank_waiting_requests")],
          "Above 0: the batch or the KV cache is full."),
    Panel("KV cache in use", "percentunit", [of_rank("moe_rank_kv_usage_ratio")],
          "Near 1 requests are preempted."),
    Panel("Step", "s",
          [Query(f"{rate_of_rank('moe_rank_busy_seconds_total')} / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Mean duration of an engine step."),
    Panel("Busy", "percentunit",
          [Query(rate_of_rank("moe_rank_busy_seconds_total"), "{{group}} {{rank}}")],
          "Share of time that the engine spends in steps."),
    Panel("Tokens a step", "short",
          [Query(f"({rate_of_rank('moe_rank_prompt_tokens_total')} + "
                 f"{rate_of_rank('moe_rank_generated_tokens_total')}) / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Prompt and generated tokens: how full the batches are."),
    Panel("Outstanding tokens", "short",
          [Query(f"sum by (group, rank) (moe_rank_outstanding_tokens{{{GROUP}}})",
                 "{{group}} {{rank}}")],
          "What routing balances, of all routers."),
    Panel("Memory", "bytes", [of_rank("moe_rank_resident_bytes")],
          "Resident, of the rank's processes."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-fleet",
    "MoE serving / Fleet",
    "What clients see, where they wait, what fails, how full the ranks are.",
    {
        "Overview": _OVERVIEW,
        "What clients see": _CLIENTS,
        "Admission": _ADMISSION,
        "Routing": _ROUTING,
        "Groups, failures, links": _FAILURES,
        "Ranks": _RANKS,
    },
)
