"""resumption.md matches the code: parameters that allow a continuation, and poison rules."""

import copy
import re

import pytest
from vllm.sampling_params import SamplingParams

from serving.requests.poison import LossHistory, Verdict
from serving.requests.resume import state_beside_tokens
from serving.settings import FleetSettings
from tests.docs.pages import ROOT

PAGE = (ROOT / "deploy" / "docs" / "resumption.md").read_text("utf-8")
SETTINGS = FleetSettings()
_PARAMETERS = re.search(
    r"any other\nparameter that is set causes a replay:\n\n(.*?)\n\n", PAGE, re.DOTALL
)
_TRIALS = re.findall(r"^\| (\d) \| (none|\d+ tokens) \|$", PAGE, re.MULTILINE)
_VERDICTS = re.findall(r"^\| (\d) \| (yes|no) \| (\w+) \|$", PAGE, re.MULTILINE)


def allows_a_continuation(name: str) -> bool:
    """Return whether a request that sets this parameter can continue."""
    if name == "temperature":
        return name not in state_beside_tokens(SamplingParams(temperature=0.7))
    params = copy.copy(SamplingParams())
    setattr(params, name, object())  # differs from every default
    return name not in state_beside_tokens(params)


def test_the_parameters_that_allow_a_continuation_are_those_of_the_code():
    assert _PARAMETERS is not None
    documented = re.findall(r"`(\w+)`", _PARAMETERS[1])
    assert documented == sorted(
        name for name in SamplingParams.__struct_fields__ if allows_a_continuation(name)
    )


@pytest.mark.parametrize(("losses", "trial"), _TRIALS)
def test_trials(losses: str, trial: str):
    tokens = LossHistory(int(losses)).trial_tokens(SETTINGS)
    assert trial == (f"{tokens} tokens" if tokens else "none")


@pytest.mark.parametrize(("losses", "alone", "verdict"), _VERDICTS)
def test_verdicts(losses: str, alone: str, verdict: str):
    before = LossHistory(int(losses) - 1)
    _, found = before.after_loss(0, SETTINGS, alone=alone == "yes")
    assert found is Verdict[verdict.upper()]


def test_enough_tokens_end_the_suspicion():
    history, verdict = LossHistory(1).after_loss(SETTINGS.suspect_tokens, SETTINGS, alone=True)
    assert (history, verdict) == (LossHistory(), Verdict.INNOCENT)


def test_the_tables_are_whole_and_the_defaults_are_those_of_the_settings():
    assert [losses for losses, _ in _TRIALS] == ["0", "1", "2"]
    assert {(losses, alone) for losses, alone, _ in _VERDICTS} == {
        (losses, alone) for losses in "12" for alone in ("yes", "no")
    }
    for name in ("max_resumes", "suspect_tokens", "suspect_losses"):
        assert f"`fleet.{name}` ({getattr(SETTINGS, name)})" in PAGE
