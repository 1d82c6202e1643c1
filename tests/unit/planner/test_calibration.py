"""Constants fitted to loads: a model's constants are recovered, and noise is tolerated."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.planner.accelerators import ACCELERATORS
from serving.planner.calibration import Observed, fit
from serving.planner.constants import PEERS, Constants
from serving.planner.group import Group, Role
from serving.planner.roofline import Limit, StepModel
from serving.planner.workload import Workload
from tests.support.planning import MODELS

POCKET = MODELS["pocket-r1"]
LOADS = [(prompt, rate) for prompt in (50, 200) for rate in (0.5, 2.0, 4.0)]


def group(known: Constants) -> Group:
    steps = StepModel(POCKET, ACCELERATORS["cpu"], 2, 1, known)
    return Group(steps, Role.MIXED, 2048, 64.0, Limit.SEQUENCES)


def seen(known: Constants, prompt: float, rate: float, noise: float = 1.0) -> Observed:
    served = group(known).serve(Workload(rate, prompt, 64), rate)
    assert served is not None
    return Observed(prompt, 64, rate, served.ttft * noise, served.itl * noise)


constants = st.builds(
    lambda layer, decode, prefill, first: dataclasses.replace(
        PEERS, layer_seconds=layer, decode=decode, prefill=prefill, first_token_seconds=first
    ),
    st.floats(1e-3, 8e-3),
    st.floats(0.2, 3),
    st.floats(0.2, 3),
    st.floats(0, 0.1),
)


@settings(max_examples=10)
@given(constants)
def test_a_models_own_constants_are_found_again(known: Constants) -> None:
    found = fit(group(PEERS), [seen(known, *load) for load in LOADS])
    assert found.residual < 0.01
    for prompt, rate in ((120, 1.0), (250, 2.0)):
        expected, predicted = seen(known, prompt, rate), seen(found.known, prompt, rate)
        assert predicted.itl == pytest.approx(expected.itl, rel=0.05)
        assert predicted.ttft == pytest.approx(expected.ttft, rel=0.1)


def test_noise_shows_in_the_residual() -> None:
    rng = random.Random(1)
    known = dataclasses.replace(PEERS, layer_seconds=4e-3)
    noisy = [seen(known, *load, rng.uniform(0.8, 1.2)) for load in LOADS]
    found = fit(group(PEERS), noisy)
    assert 0.03 < found.residual < 0.2
    exact, fitted = (seen(each, 120, 1.0) for each in (known, found.known))
    assert fitted.itl == pytest.approx(exact.itl, rel=0.2)


@pytest.mark.parametrize(
    "loads",
    [
        pytest.param([], id="none"),
        pytest.param([Observed(50, 64, 1.0, 0.1, 0.0)] * 6, id="no times between tokens"),
        pytest.param([Observed(50, 64, 0.0, 0.1, 0.1)] * 6, id="nothing completed"),
    ],
)
def test_loads_without_results_are_rejected(loads: list[Observed]) -> None:
    with pytest.raises(InvalidRequest, match="calibrate for longer"):
        fit(group(PEERS), loads)
