"""The experts dashboard: load of experts and ranks, and the gain of speculative decoding."""

from panels import GROUP, RATE, Panel, Query, dashboard, rate_of_rank

_ALL = f'layers="all", {GROUP}'
_BANDS = f'layers!="all", {GROUP}'


def _imbalance(over: str, where: str, legend: str) -> Query:
    return Query(
        f'max by (group, layers) (moe_expert_imbalance_ratio{{over="{over}", {where}}})', legend
    )


def _per_group(counter: str) -> str:
    return f"sum by (group) ({rate_of_rank(counter)})"


_PROPOSED = _per_group("moe_mtp_proposed_tokens_total")
_ACCEPTED = _per_group("moe_mtp_accepted_tokens_total")

_BALANCE = [
    Panel("Imbalance over ranks", "short", [_imbalance("ranks", _ALL, "{{group}}")],
          "Busiest rank divided by the mean, averaged over MoE layers. Steps wait for the busiest "
          "rank: at a steady 1.5, the others wait for a third of their expert time."),
    Panel("Imbalance over experts", "short", [_imbalance("experts", _ALL, "{{group}}")],
          "Busiest expert divided by the mean. /fleet lists the busiest ones."),
    Panel("Imbalance over ranks, by layers", "short",
          [_imbalance("ranks", _BANDS, "{{group}} layers {{layers}}")],
          "Busiest rank divided by the mean; early and late layers often differ."),
    Panel("Imbalance over experts, by layers", "short",
          [_imbalance("experts", _BANDS, "{{group}} layers {{layers}}")],
          "Busiest expert divided by the mean, by layers."),
    Panel("Expert tokens", "short",
          [Query(rate_of_rank("moe_expert_tokens_total"), "{{group}} {{rank}}")],
          "Tokens/s computed by the rank's experts, summed over experts and layers."),
    Panel("Share of the group's expert tokens", "percentunit",
          [Query(f"{rate_of_rank('moe_expert_tokens_total')} / on (group) group_left "
                 f"sum by (group) ({rate_of_rank('moe_expert_tokens_total')} > 0)",
                 "{{group}} {{rank}}")],
          "With an even load: 1 divided by the number of ranks."),
    Panel("Slowest step relative to the mean", "short",
          [Query(f"max by (group) (moe_rank_step_seconds{{{GROUP}}}) / "
                 f"avg by (group) (moe_rank_step_seconds{{{GROUP}}})", "{{group}}")],
          "Ranks step together, so this is near 1; otherwise one rank waits for something else."),
]  # fmt: skip

_SPECULATION = [
    Panel("Acceptance", "percentunit", [Query(f"{_ACCEPTED} / ({_PROPOSED} > 0)", "{{group}}")],
          "Share of drafted tokens that were accepted. Below about 0.5, drafting costs more than "
          "it saves."),
    Panel("Drafted and accepted", "short",
          [Query(_PROPOSED, "{{group}} drafted"), Query(_ACCEPTED, "{{group}} accepted")],
          "Drafted and accepted tokens/s."),
    Panel("Generated tokens that were drafted", "percentunit",
          [Query(f"{_ACCEPTED} / ({_per_group('moe_rank_generated_tokens_total')} > 0)",
                 "{{group}}")],
          "The gain of speculation: with a share s, a token costs 1 - s of a step."),
    Panel("Acceptance by rank", "percentunit",
          [Query(f"{rate_of_rank('moe_mtp_accepted_tokens_total')} / "
                 f"({rate_of_rank('moe_mtp_proposed_tokens_total')} > 0)", "{{group}} {{rank}}")],
          "A rank that differs from the others serves other kinds of requests."),
    Panel("Generated tokens per step", "short",
          [Query(f"{rate_of_rank('moe_rank_generated_tokens_total')} / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Generated tokens of a step, over all requests of the rank."),
    Panel("Step", "s",
          [Query(f"max by (group) (rate(moe_rank_busy_seconds_total{{{GROUP}}}[{RATE}])) / "
                 f"(max by (group) (rate(moe_rank_engine_steps_total{{{GROUP}}}[{RATE}])) > 0)",
                 "{{group}}")],
          "Duration of a step. Drafting makes steps longer: compare with and without it."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-experts",
    "MoE serving / Experts and speculation",
    "Load of experts and ranks, and the gain of speculative decoding.",
    {"Experts": _BALANCE, "Multi-token prediction": _SPECULATION},
)
