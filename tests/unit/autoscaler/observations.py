"""Observations and settings for the policy's tests."""

from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.settings import AutoscalerSettings

CALM = {
    Signal.TTFT_P90: 0.2,
    Signal.ITL_P90: 0.02,
    Signal.QUEUE_WAIT_P90: 0.0,
    Signal.QUEUE_REQUESTS: 0.0,
    Signal.QUEUE_TOKENS: 0.0,
    Signal.TOKEN_RATE: 500.0,
    Signal.REQUEST_RATE: 2.0,
    Signal.INFLIGHT: 4.0,
}
IDLE = dict.fromkeys(CALM, 0.0) | dict.fromkeys(
    (Signal.TTFT_P90, Signal.ITL_P90, Signal.QUEUE_WAIT_P90)
)


def settings(**changes) -> AutoscalerSettings:
    """Settings with round numbers: objectives of 1 s, capacity 1000, band 0.5 to 0.8."""
    base = {
        "min_groups": 0,
        "max_groups": 8,
        "ttft_slo": 1.0,
        "itl_slo": 0.1,
        "queue_wait_slo": 1.0,
        "pressure_clamp": 2.0,
        "group_tokens_per_second": 1000.0,
        "max_step_up": 8,
        "max_step_down": 8,
        "down_window": 300.0,
        "idle_timeout": 600.0,
        "warming_timeout": 600.0,
    }
    return AutoscalerSettings(**(base | changes))


def observation(
    target=2, ready=None, parked=0, base=CALM, age=1.0, gap=0.0, fleet=True, **changes
) -> Observation:
    """Build an observation; signals by their member name in lower case."""
    values = dict(base) | {Signal[name.upper()]: value for name, value in changes.items()}
    counts = FleetCounts(target if ready is None else ready, parked) if fleet else None
    readings = {signal: Reading(value, age, gap) for signal, value in values.items()}
    return Observation(target, counts, readings)
