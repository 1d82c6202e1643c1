"""Tests of the validators: a good history passes, and each kind of damage is reported."""

from dataclasses import replace

import pytest
from vllm.sampling_params import RequestOutputKind

from tests.faults.cluster import Shape
from tests.faults.history import Ended, Output, Ran
from tests.faults.scenarios import Scenario, run_scenario
from tests.faults.traffic import Spec
from tests.faults.validate import Rules, violations

PARAMS = {"temperature": 0, "max_tokens": 8, "logprobs": 1}
SPEC = Spec("r00", 0.0, (40, 41, 42), PARAMS, RequestOutputKind.DELTA)


@pytest.fixture(scope="module")
def good():
    return run_scenario(Scenario(1, Shape(groups=1, ranks=1), (SPEC,))).history


@pytest.fixture
def history(good):
    return replace(good, events=list(good.events), leftovers=[])


def positions(history, kind):
    return [number for number, event in enumerate(history.events) if isinstance(event, kind)]


def change_piece(history, number, **changes):
    at = positions(history, Output)[number]
    output = history.events[at]
    history.events[at] = replace(output, pieces=(replace(output.pieces[0], **changes),))


def repeat_output(history):
    at = positions(history, Output)[2]
    history.events.insert(at, history.events[at])


def lose_output(history):
    del history.events[positions(history, Output)[2]]


def swap_outputs(history):
    one, two = positions(history, Output)[2:4]
    events = history.events
    events[one], events[two] = events[two], events[one]


def other_text(history):
    change_piece(history, 2, text="??")


def other_logprobs(history):
    change_piece(history, 2, logprob_ids=(1,))


def other_reason(history):
    change_piece(history, -1, finish_reason="stop")


def end_twice(history):
    history.events.append(history.events[positions(history, Ended)[0]])


def never_end(history):
    del history.events[positions(history, Ended)[0]]


def output_after_end(history):
    history.events.append(history.events[positions(history, Output)[0]])


def end_early(history):
    del history.events[positions(history, Output)[-1]]


def fail(history, how):
    at = positions(history, Ended)[0]
    last = positions(history, Output)[-1]
    history.events[at] = replace(history.events[at], how=how)
    history.events[last] = replace(history.events[last], finished=False)


def abort_late(history):
    ended = history.events[positions(history, Ended)[0]]
    at = positions(history, Ran)[-1]
    late = replace(history.events.pop(at), at=ended.at + 2.0)
    history.events.append(late)


def never_abort(history):
    del history.events[positions(history, Ran)[-1]]


def run_twice(history):
    begun, ended = positions(history, Ran)
    history.events[begun:begun] = [history.events[begun], history.events[ended]]


def leave_something(history):
    history.leftovers.append("router0: 1 requests on links")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(repeat_output, "tokens differ", id="a token twice"),
        pytest.param(lose_output, "tokens differ", id="a token missing"),
        pytest.param(swap_outputs, "tokens differ", id="tokens out of order"),
        pytest.param(other_text, "text is", id="another text"),
        pytest.param(other_logprobs, "belong to other tokens", id="log-probabilities"),
        pytest.param(other_reason, "finish reason is", id="another finish reason"),
        pytest.param(end_twice, "ended 2 times", id="two ends"),
        pytest.param(never_end, "ended 0 times", id="no end"),
        pytest.param(output_after_end, "after its end", id="output after the end"),
        pytest.param(end_early, "the last outputs of", id="finished without a last output"),
        pytest.param(lambda h: fail(h, "GROUP_LOST"), "GROUP_LOST after 0", id="lost"),
        pytest.param(lambda h: fail(h, "OVERLOADED"), "after its first output", id="rejected late"),
        pytest.param(lambda h: fail(h, "DEADLINE_EXCEEDED"), "DEADLINE", id="early deadline"),
        pytest.param(lambda h: fail(h, "CANCELLED"), "CANCELLED", id="cancelled without a client"),
        pytest.param(lambda h: fail(h, "POISON_REQUEST"), "POISON", id="no poison"),
        pytest.param(lambda h: fail(h, "INTERNAL"), "INTERNAL", id="an unexpected error"),
        pytest.param(abort_late, "ran it for", id="late abort"),
        pytest.param(never_abort, "never ended it", id="no abort"),
        pytest.param(run_twice, "ran twice", id="one attempt twice"),
        pytest.param(leave_something, "leak", id="leak"),
    ],
)
def test_violations_are_reported(history, spoil, words):
    assert violations(history, Rules()) == []
    spoil(history)
    found = violations(history, Rules())
    assert any(words in line for line in found), found


def test_a_lost_request_is_allowed_where_the_rules_allow_it(history):
    fail(history, "GROUP_LOST")
    assert violations(history, Rules(must_complete=False)) == []
