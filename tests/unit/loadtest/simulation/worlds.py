"""Builders of small fleets."""

from loadtest.simulation.calibration import Calibration, StepTime
from loadtest.simulation.outcome import Objective
from loadtest.simulation.scalers import FixedSize
from loadtest.simulation.simulated_request import SimulatedRequest
from loadtest.simulation.simulator import Simulator
from serving.settings import Settings


def calibration(**changes):
    """Steps of 10 ms, plus 1 ms per sequence and 0.1 ms per prompt token."""
    values = {
        "name": "test",
        "source": "made up",
        "measured": False,
        "step": StepTime(0.010, 0.001, 0.0001),
        "ranks": 1,
        "gpus": 1.0,
        "kv_tokens": 4096,
        "kv_block": 16,
        "prefix_caching": False,
        "max_num_seqs": 8,
        "max_model_len": 1024,
        "batch_tokens": 512,
        "chunked_prefill": True,
        "startup": 20.0,
        "warmup": 1.0,
        "overhead": 0.0,
    }
    return Calibration(**{**values, **changes})


def settings(admission=None, **scaling):
    return Settings.model_validate({"autoscaler": scaling, "admission": admission or {}})


def world(
    cal=None, scaler=None, scaling=None, *, groups=1, seconds=10.0, kind=Simulator, **options
):
    scaler = scaler or FixedSize(groups)
    return kind(
        cal or calibration(),
        scaler,
        scaling or settings(),
        Objective(1.0, 0.1),
        seconds=seconds,
        groups=groups,
        **options,
    )


def sequences(*rows):
    """Build requests from (at, prompt tokens, output tokens)."""
    return [SimulatedRequest(number, *row) for number, row in enumerate(rows)]


def steady(rate, begin, end, prompt=64, output=32, first=0):
    """Evenly spaced arrivals."""
    count = int((end - begin) * rate)
    return [
        SimulatedRequest(first + number, begin + number / rate, prompt, output)
        for number in range(count)
    ]
