"""Random histories of a simulated cluster; planted bugs are found."""

from dataclasses import replace

import pytest
from vllm.sampling_params import RequestOutputKind

import serving.requests.request as fleet_request
from serving.errors import GroupLost
from serving.fleet.rank_link import RankLink
from serving.requests.losses import GroupLosses
from serving.requests.output_buffer import OutputBuffer
from serving.requests.poison import LossHistory
from serving.requests.request import FleetRequest
from serving.requests.resume import Way
from tests.faults.cluster import Shape
from tests.faults.faults import FAULTS
from tests.faults.history import Ended, Happened, Ran
from tests.faults.scenarios import Scenario, Strike, random_scenario, run_scenario
from tests.faults.traffic import POISON, Spec

BLOCK, BLOCKS = 25, 20
DELTA = RequestOutputKind.DELTA


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_histories_hold(block):
    verdicts = [
        run_scenario(random_scenario(seed)) for seed in range(block * BLOCK, (block + 1) * BLOCK)
    ]
    bad = [str(verdict) for verdict in verdicts if verdict.violations]
    assert not bad, "\n".join(bad)


def test_random_histories_are_about_something():
    """Faults hit: requests are resumed, cancelled, rejected as poison, and late."""
    ends = [
        event
        for seed in range(40)
        for event in run_scenario(random_scenario(seed)).history.events
        if isinstance(event, Ended)
    ]
    hows = {event.how for event in ends}
    assert hows >= {"FINISHED", "CANCELLED", "DEADLINE_EXCEEDED", "POISON_REQUEST"}
    assert sum(event.how == "FINISHED" and event.resumes > 0 for event in ends) > 60
    assert max(event.resumes for event in ends if event.how == "FINISHED") > 1


@pytest.mark.parametrize("seed", [0, 7, 19])
def test_a_seed_always_gives_the_same_history(seed):
    first, second = (run_scenario(random_scenario(seed)).history for _ in range(2))
    assert list(first.lines()) == list(second.lines())


# -- planted bugs ----------------------------------------------------------------


def forget_a_token(monkeypatch):
    """The continuation's prompt lacks the last token that was emitted."""
    plan = fleet_request.plan

    def wrong(*args, **kwargs):
        following = plan(*args, **kwargs)
        if following.way is Way.CONTINUE:
            del following.work.prompt_token_ids[-1]
        return following

    monkeypatch.setattr(fleet_request, "plan", wrong)


def send_a_token_twice(monkeypatch):
    """A replay skips one token too few."""
    rewind = OutputBuffer.rewind

    def wrong(self):
        rewind(self)
        for choice in self._choices:
            del choice.token_ids[-1:]

    monkeypatch.setattr(OutputBuffer, "rewind", wrong)


def do_not_abort(monkeypatch):
    """A request whose client disconnected stays on its rank."""
    monkeypatch.setattr(RankLink, "release", lambda self, stream: None)


def do_not_resume(monkeypatch):
    """A lost group's requests fail."""

    async def wrong(self, error):
        raise GroupLost("it was lost")

    monkeypatch.setattr(FleetRequest, "_resume", wrong)


def count_no_loss(monkeypatch):
    """A poison request kills one group after another until its deadline."""
    monkeypatch.setattr(GroupLosses, "count", lambda *_, **__: None)


def blame_everybody(monkeypatch):
    """A request that was on two lost groups is rejected as if it had been alone on them."""
    after_loss = LossHistory.after_loss

    def wrong(self, seen_tokens, settings, *, alone):
        del alone
        return after_loss(self, seen_tokens, settings, alone=True)

    monkeypatch.setattr(LossHistory, "after_loss", wrong)
    monkeypatch.setattr(LossHistory, "trial_tokens", lambda self, settings: 0)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        pytest.param(forget_a_token, "tokens differ", id="resume off by one token"),
        pytest.param(send_a_token_twice, "choice 0", id="replay off by one token"),
        pytest.param(do_not_abort, "leak", id="no abort"),
        pytest.param(do_not_resume, "GROUP_LOST", id="no resumption"),
        pytest.param(blame_everybody, "rejected as poison", id="innocents are rejected"),
        pytest.param(count_no_loss, "poison request was started", id="no limit to resumptions"),
    ],
)
def test_a_planted_bug_is_caught(monkeypatch, plant, words):
    plant(monkeypatch)
    for seed in range(60):
        found = run_scenario(random_scenario(seed)).violations
        if any(words in line for line in found):
            return
    pytest.fail("not detected in 60 histories")


# -- specific histories ----------------------------------------------------------------


def requests(count, at=0.0, tokens=40, **more):
    return tuple(
        Spec(f"r{n:02}", at, (40 + n, 41), {"temperature": 0, "max_tokens": tokens}, DELTA, **more)
        for n in range(count)
    )


def requests_named(letter, count, **more):
    return tuple(
        replace(spec, name=spec.name.replace("r", letter)) for spec in requests(count, **more)
    )


def scenario(shape, traffic, *strikes):
    strikes = tuple(Strike(at, FAULTS[name]) for name, at in strikes)
    return Scenario(1, shape, traffic, strikes)


def played(told):
    verdict = run_scenario(told)
    assert not verdict.violations, str(verdict)
    ends = {event.request: event for event in verdict.history.events if isinstance(event, Ended)}
    return verdict.history, ends


@pytest.mark.parametrize("fault", ["kill_rank", "fail_engine", "cut_link", "kill_all", "hand_over"])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_fault_loses_nothing(fault, groups):
    shape = Shape(groups=groups, ranks=2)
    _, ends = played(scenario(shape, requests(16), (fault, 0.3)))
    assert {end.how for end in ends.values()} == {"FINISHED"}
    assert any(end.resumes for end in ends.values())


def test_a_drained_group_hands_over_or_finishes():
    _, ends = played(scenario(Shape(groups=2), requests(16), ("drain_group", 0.3)))
    assert {end.how for end in ends.values()} == {"FINISHED"}


def test_streams_of_a_dead_router_are_aborted_and_others_go_on():
    traffic = tuple(replace(spec, router=number % 2) for number, spec in enumerate(requests(12)))
    scene = scenario(Shape(routers=2), traffic, ("kill_router", 0.3))
    _, ends = played(scene)
    died = [end for end in ends.values() if end.how == "DIED"]
    assert len(died) == 6
    assert all(end.resumes == 0 for end in ends.values())
    assert sum(end.how == "FINISHED" for end in ends.values()) == 6


def test_poison_is_refused_before_it_has_killed_every_group():
    poison = Spec("p00", 0.5, (40, POISON), {"temperature": 0, "max_tokens": 9}, DELTA)
    history, ends = played(scenario(Shape(groups=4, ranks=1), (*requests(4, tokens=60), poison)))
    assert ends["p00"].how == "POISON_REQUEST"
    killed = [event for event in history.faults() if "is killed" in event.what]
    assert len(killed) == 2
    others = [end.how for name, end in ends.items() if name != "p00"]
    assert others == ["FINISHED"] * 4


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("tokens", [3, 40], ids=["short", "long"])
def test_innocents_beside_a_poisonous_request_are_spared(groups, tokens):
    """Innocent requests move with a poison request; two groups die, only the latter is rejected."""
    poison = Spec("p00", 0.0, (40, POISON), {"temperature": 0, "max_tokens": 9}, DELTA)
    traffic = (*requests(8, tokens=tokens), poison, *requests_named("s", 8, tokens=tokens))
    history, ends = played(scenario(Shape(groups=groups, suspect_tokens=32, slots=32), traffic))
    assert ends.pop("p00").how == "POISON_REQUEST"
    assert {end.how for end in ends.values()} == {"FINISHED"}
    killed = [event for event in history.faults() if "is killed" in event.what]
    assert len(killed) == 2


def test_a_slow_client_on_trial_does_not_hold_up_the_others():
    """It does not read its answer, which is generated anyway."""
    slow = requests_named("a", 1, tokens=60, slow=20.0)
    scene = scenario(Shape(groups=1, suspect_tokens=32), (*slow, *requests(6)), ("kill_rank", 0.1))
    _, ends = played(scene)
    assert {end.how for end in ends.values()} == {"FINISHED"}
    assert max(ends[f"r{n:02}"].at for n in range(6)) < ends["a00"].at


def test_a_client_that_goes_away_frees_its_rank():
    leaving = requests(6, tokens=60, cancel_at=0.2)
    history, ends = played(scenario(Shape(), leaving))
    assert {end.how for end in ends.values()} == {"CANCELLED"}
    done = [event.at for event in history.events if isinstance(event, Ran) and not event.began]
    assert max(done) - min(end.at for end in ends.values()) < 1.0


def test_parked_requests_run_when_a_group_comes_and_late_ones_end_on_time():
    patient = requests(4, at=1.0)
    hasty = tuple(replace(spec, name=f"h{n}", deadline=0.5) for n, spec in enumerate(patient))
    history, ends = played(scenario(Shape(groups=1), (*patient, *hasty), ("kill_all", 0.5)))
    assert {end.how for name, end in ends.items() if name[0] == "r"} == {"FINISHED"}
    assert {end.how for name, end in ends.items() if name[0] == "h"} == {"DEADLINE_EXCEEDED"}
    assert any(
        isinstance(event, Happened) and "g0.1 is ready" in event.what for event in history.events
    )
