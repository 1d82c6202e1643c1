"""The cost dashboard: what tenants pay, what GPUs cost, and how much of them is idle.

Amounts are in the currency of the routers' tariff; `moe-serving usage` has the exact ones.
"""

from panels import GROUP, RATE, Panel, Query, dashboard, rate, rate_of_rank

_GPUS = f"sum(max by (group, rank) (moe_rank_gpus{{{GROUP}}}))"
_BUSY = (
    f"sum({rate_of_rank('moe_rank_busy_seconds_total')} * "
    f"on (group, rank) max by (group, rank) (moe_rank_gpus{{{GROUP}}}))"
)
_COST = f"{_GPUS} * max(moe_gpu_hour_price)"
"""Cost of all GPUs for an hour."""
_PRICE = f"sum(rate(moe_tenant_price_total[{RATE}])) * 3600"
"""Price that tenants pay for an hour."""
_TOKENS = (
    f"(sum(rate(moe_prompt_tokens_total[{RATE}])) + sum(rate(moe_generated_tokens_total[{RATE}])))"
)
_PER_MILLION = "* 1e6 / 3600"

_OVERVIEW = [
    Panel("GPU cost an hour", "short", [Query(_COST, "")],
          "GPUs of all groups times ledger.gpu_hour_price.", stat=True),
    Panel("Price an hour", "short", [Query(_PRICE, "")],
          "What tenants pay per hour at the current rate.", stat=True),
    Panel("Margin", "percentunit", [Query(f"({_PRICE} - {_COST}) / ({_COST})", "")],
          "Price minus GPU cost, relative to the cost. No data without ledger.gpu_hour_price.",
          stat=True),
    Panel("Cost per million tokens", "short", [Query(f"{_COST} / {_TOKENS} {_PER_MILLION}", "")],
          "GPU cost of a million prompt and generated tokens, including idle time.", stat=True),
    Panel("Idle", "percentunit", [Query(f"1 - {_BUSY} / {_GPUS}", "")],
          "Share of GPU time outside of engine steps.", stat=True),
    Panel("GPUs", "short", [Query(_GPUS, "")],
          "Workers of all ranks; on CPU, they count as GPUs.", stat=True),
]  # fmt: skip

_TIME = [
    Panel("Cost per million tokens over time", "short",
          [Query(f"{_COST} / {_TOKENS} {_PER_MILLION}", "GPUs, idle included"),
           Query(f"{_COST} * {_BUSY} / {_GPUS} / {_TOKENS} {_PER_MILLION}", "GPUs, busy only"),
           Query(f"{_PRICE} / {_TOKENS} {_PER_MILLION}", "price")],
          "What a million prompt and generated tokens cost, and what tenants pay for them. The "
          "difference between the first two is idle time."),
    Panel("Price by tenant, an hour", "short",
          [Query(f"topk(10, sum by (tenant) (rate(moe_tenant_price_total[{RATE}])) * 3600)",
                 "{{tenant}}")],
          "The ten tenants that pay the most; those beyond telemetry.tenant_labels are other."),
    Panel("Idle share over time", "percentunit",
          [Query(f"1 - {_BUSY} / {_GPUS}", "idle")],
          "If it is high for hours, there are too many groups; see deploy/docs/autoscaling.md."),
]  # fmt: skip

_BUDGETS = [
    Panel("Refused by budgets", "reqps", [rate("moe_budget_refusals_total", "scope, period")],
          "Requests/s of tenants and keys whose budget is used up."),
    Panel("Above a soft limit", "reqps", [rate("moe_budget_warnings_total", "scope, period")],
          "Prompts/s of tenants and keys above the soft limit of a budget; the log names them."),
    Panel("Ledger behind", "s", [Query("max(moe_ledger_lag_seconds)", "lag")],
          "Age of the oldest record that is not in the database; above a minute, the database is slow "
          "or unavailable."),
    Panel("Records lost", "short",
          [Query(f"sum(increase(moe_ledger_records_dropped_total[{RATE}]))", "dropped")],
          "Requests that cannot be billed; the log has the reason."),
    Panel("Database failures", "short",
          [Query(f"sum(increase(moe_ledger_failures_total[{RATE}]))", "inserts"),
           Query(f"sum(increase(moe_budget_store_failures_total[{RATE}]))", "reservations")],
          "Transactions that failed or took too long; until this is fixed, ledger.budget_down "
          "applies."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-cost",
    "MoE serving / Cost",
    "What tenants pay, what GPUs cost, and how much of them is idle.",
    {"Overview": _OVERVIEW, "Price and cost": _TIME, "Budgets and ledger": _BUDGETS},
)
