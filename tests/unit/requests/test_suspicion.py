"""Which losses make a request a suspect, and when it is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.requests.suspicion import PROBATION_TOKENS, Suspicion, Verdict
from serving.settings import FleetSettings

SETTINGS = FleetSettings(suspect_tokens=32, suspect_losses=2)
ONCE = FleetSettings(suspect_losses=1)
THRICE = FleetSettings(suspect_losses=3)
NEVER = FleetSettings(suspect_tokens=0)


@pytest.mark.parametrize(
    ("before", "seen", "alone", "settings", "after", "verdict"),
    [
        pytest.param(0, 0, False, SETTINGS, 1, Verdict.SUSPECT, id="first loss"),
        pytest.param(0, 31, False, SETTINGS, 1, Verdict.SUSPECT, id="hardly begun"),
        pytest.param(0, 32, False, SETTINGS, 0, Verdict.INNOCENT, id="ran for a while"),
        pytest.param(1, 0, True, SETTINGS, 2, Verdict.POISON, id="second loss, alone"),
        pytest.param(1, 0, False, SETTINGS, 2, Verdict.SUSPECT, id="second loss, among others"),
        pytest.param(2, 0, False, SETTINGS, 3, Verdict.SUSPECT, id="third loss, among others"),
        pytest.param(2, 5, True, SETTINGS, 3, Verdict.POISON, id="third loss, alone"),
        pytest.param(1, 32, True, SETTINGS, 0, Verdict.INNOCENT, id="cleared by a long run"),
        pytest.param(0, 0, False, ONCE, 1, Verdict.POISON, id="one loss is too many"),
        pytest.param(1, 0, True, THRICE, 2, Verdict.SUSPECT, id="two of three"),
        pytest.param(2, 0, True, THRICE, 3, Verdict.POISON, id="three of three"),
        pytest.param(0, 0, False, NEVER, 0, Verdict.INNOCENT, id="nobody is suspected"),
    ],
)
def test_verdict(before, seen, alone, settings, after, verdict):
    assert Suspicion(before).after_loss(seen, settings, alone=alone) == (Suspicion(after), verdict)


@pytest.mark.parametrize(
    ("losses", "settings", "tokens"),
    [
        pytest.param(0, SETTINGS, 0, id="none"),
        pytest.param(1, SETTINGS, PROBATION_TOKENS, id="short"),
        pytest.param(2, SETTINGS, 32, id="long"),
        pytest.param(3, SETTINGS, 32, id="no longer than that"),
    ],
)
def test_probation(losses, settings, tokens):
    assert Suspicion(losses).probation(settings) == tokens


Losses = st.lists(st.tuples(st.integers(0, 64), st.booleans()), max_size=12)


@given(Losses, st.integers(2, 4))
def test_only_who_was_alone_is_refused(losses, suspect_losses):
    settings = FleetSettings(suspect_losses=suspect_losses)
    suspicion = Suspicion()
    for seen, alone in losses:
        suspicion, verdict = suspicion.after_loss(seen, settings, alone=alone)
        assert (verdict is Verdict.POISON) <= alone


@given(st.lists(st.integers(0, 31), min_size=4, max_size=4), st.integers(1, 4))
def test_who_kills_each_group_alone_is_refused_in_time(seen, suspect_losses):
    settings = FleetSettings(suspect_losses=suspect_losses)
    suspicion, verdicts = Suspicion(), []
    for tokens in seen[:suspect_losses]:
        alone = suspicion.probation(settings) > 0
        suspicion, verdict = suspicion.after_loss(tokens, settings, alone=alone)
        verdicts.append(verdict)
    assert verdicts == [Verdict.SUSPECT] * (suspect_losses - 1) + [Verdict.POISON]
