"""Experts and speculation: who computes how much, and what drafting is worth."""

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
          "Busiest rank over the mean, mean of the MoE layers. Steps wait for the busiest: 1.5 "
          "steady means that a third of the expert time of the others is spent waiting."),
    Panel("Imbalance over experts", "short", [_imbalance("experts", _ALL, "{{group}}")],
          "Busiest expert over the mean. /fleet names the hottest ones."),
    Panel("Imbalance over ranks, by layers", "short",
          [_imbalance("ranks", _BANDS, "{{group}} layers {{layers}}")],
          "Early and late layers often differ."),
    Panel("Imbalance over experts, by layers", "short",
          [_imbalance("experts", _BANDS, "{{group}} layers {{layers}}")],
          "The same, over experts."),
    Panel("Expert tokens", "short",
          [Query(rate_of_rank("moe_expert_tokens_total"), "{{group}} {{rank}}")],
          "Tokens a second that the rank's experts compute, over experts and layers."),
    Panel("Share of the group's expert tokens", "percentunit",
          [Query(f"{rate_of_rank('moe_expert_tokens_total')} / on (group) group_left "
                 f"sum by (group) ({rate_of_rank('moe_expert_tokens_total')} > 0)",
                 "{{group}} {{rank}}")],
          "Even is one over the number of ranks."),
    Panel("Slowest step over the mean", "short",
          [Query(f"max by (group) (moe_rank_step_seconds{{{GROUP}}}) / "
                 f"avg by (group) (moe_rank_step_seconds{{{GROUP}}})", "{{group}}")],
          "Ranks step together, so this stays near 1; if not, one rank waits elsewhere."),
]  # fmt: skip

_SPECULATION = [
    Panel("Acceptance", "percentunit", [Query(f"{_ACCEPTED} / ({_PROPOSED} > 0)", "{{group}}")],
          "Share of the drafted tokens that were accepted. Below about 0.5 drafting costs more than "
          "it gives."),
    Panel("Drafted and accepted", "short",
          [Query(_PROPOSED, "{{group}} drafted"), Query(_ACCEPTED, "{{group}} accepted")],
          "Tokens a second."),
    Panel("Generated tokens that were drafted", "percentunit",
          [Query(f"{_ACCEPTED} / ({_per_group('moe_rank_generated_tokens_total')} > 0)",
                 "{{group}}")],
          "What speculation gives: with a share s a token costs 1 - s of a step."),
    Panel("Acceptance by rank", "percentunit",
          [Query(f"{rate_of_rank('moe_mtp_accepted_tokens_total')} / "
                 f"({rate_of_rank('moe_mtp_proposed_tokens_total')} > 0)", "{{group}} {{rank}}")],
          "A rank far from the others serves other kinds of requests."),
    Panel("Generated tokens a step", "short",
          [Query(f"{rate_of_rank('moe_rank_generated_tokens_total')} / "
                 f"({rate_of_rank('moe_rank_engine_steps_total')} > 0)", "{{group}} {{rank}}")],
          "Of all requests of the rank together."),
    Panel("Step", "s",
          [Query(f"max by (group) (rate(moe_rank_busy_seconds_total{{{GROUP}}}[{RATE}])) / "
                 f"(max by (group) (rate(moe_rank_engine_steps_total{{{GROUP}}}[{RATE}])) > 0)",
                 "{{group}}")],
          "A draft makes steps longer: compare with and without."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-experts",
    "MoE serving / Experts and speculation",
    "Who computes how much, and what drafting is worth.",
    {"Experts": _BALANCE, "Multi-token prediction": _SPECULATION},
)
