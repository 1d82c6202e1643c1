"""The PromQL of every signal. Pure.

Names of metrics are those of ``serving.telemetry.metrics``. Each router counts its own requests,
so counts are summed; all routers see the same groups, so of those the largest view counts.
"""

from serving.autoscaler.snapshot import Signal
from serving.telemetry import metrics

_QUANTILE = 0.9

# The client's objects leave out the suffixes that the text format adds.
_TTFT = "moe_time_to_first_token_seconds"
_ITL = "moe_inter_token_latency_seconds"
_WAIT = "moe_admission_wait_seconds"
PULSE = "moe_inflight_requests"
"""Is there as long as a router is scraped: its samples tell age and gaps."""


def signal_queries(selector: str, window: float) -> dict[Signal, str]:
    """Return the query of each signal.

    Args:
        selector: label matchers without braces, or "".
        window: seconds of rates and quantiles.
    """
    span = f"{{{selector}}}[{_duration(window)}]"
    here = f"{{{selector}}}"
    ready = f'{selector},state="ready"' if selector else 'state="ready"'
    return {
        Signal.TTFT_P90: _quantile(_TTFT, span),
        Signal.ITL_P90: _quantile(_ITL, span),
        Signal.QUEUE_WAIT_P90: _quantile(_WAIT, span),
        # A router whose queue was never used has no child of these yet: that is an empty queue.
        Signal.QUEUE_REQUESTS: f"sum(moe_admission_queue_requests{here}) or 0 * sum({PULSE}{here})",
        Signal.QUEUE_TOKENS: f"sum(moe_admission_queue_tokens{here})",
        Signal.TOKEN_RATE: f"sum(rate(moe_generated_tokens_total{span}))",
        Signal.REQUEST_RATE: f"sum(rate({_TTFT}_count{span}))",
        Signal.INFLIGHT: f"sum({PULSE}{here})",
        Signal.READY_GROUPS: f"max({metrics.GROUPS.name}{{{ready}}})",
    }


def age_query(selector: str) -> str:
    """Return the seconds since the newest scrape of any router."""
    return f"min(time() - timestamp({PULSE}{{{selector}}}))"


def samples_query(selector: str, window: float) -> str:
    """Return the scrapes inside the window of the router that has most."""
    return f"max(count_over_time({PULSE}{{{selector}}}[{_duration(window)}]))"


def _quantile(histogram: str, span: str) -> str:
    return f"histogram_quantile({_QUANTILE}, sum by (le) (rate({histogram}_bucket{span})))"


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
