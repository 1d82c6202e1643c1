"""Pools, counts and readings for the tests of several pools."""

from serving.autoscaler.pools import FleetPools, Measured, ScaledPool
from serving.autoscaler.signals import Reading, Signal
from tests.unit.autoscaler.observations import settings

POOL_SIGNALS = (
    Signal.TTFT_P90,
    Signal.ITL_P90,
    Signal.TOKEN_RATE,
    Signal.REQUEST_RATE,
    Signal.INFLIGHT,
    Signal.READY_GROUPS,
)
CALM = {
    Signal.TTFT_P90: 0.2,
    Signal.ITL_P90: 0.02,
    Signal.TOKEN_RATE: 500.0,
    Signal.REQUEST_RATE: 2.0,
    Signal.INFLIGHT: 4.0,
}
IDLE = {
    Signal.TTFT_P90: None,
    Signal.ITL_P90: None,
    Signal.TOKEN_RATE: 0.0,
    Signal.REQUEST_RATE: 0.0,
    Signal.INFLIGHT: 0.0,
}


def pool(key: str, gpus: float = 1.0, **changes) -> ScaledPool:
    model, _, name = key.partition("/")
    return ScaledPool(model, name or "default", settings(**changes), gpus)


def fleet(ready, waiting=None, parked=None) -> FleetPools:
    """Counts; ``waiting`` includes ``parked``."""
    parked = parked or {}
    return FleetPools(ready, parked | (waiting or {}), parked)


def measured(pools, queues=None, age=1.0) -> Measured:
    """Readings: signals by pool, and (requests, tokens, wait) of the queue by model."""
    models = {key.partition("/")[0] for key in pools}
    return Measured(
        {
            key: {signal: Reading(value, age, 0.0) for signal, value in values.items()}
            for key, values in pools.items()
        },
        {model: _queue(*(queues or {}).get(model, (0.0, 0.0, 0.0)), age) for model in models},
    )


def _queue(requests, tokens, wait, age):
    return {
        Signal.QUEUE_REQUESTS: Reading(requests, age, 0.0),
        Signal.QUEUE_TOKENS: Reading(tokens, age, 0.0),
        Signal.QUEUE_WAIT_P90: Reading(wait, age, 0.0),
    }
