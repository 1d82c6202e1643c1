"""Each rule as a table of cases."""

import pytest

from serving.autoscaler import rules
from serving.autoscaler.decision import PolicyState, VoteKind
from serving.autoscaler.rules import policy_inputs
from tests.unit.autoscaler.observations import IDLE, observation, settings

NOW = 1_000_000.0
"""12 January 1970, a Monday, 13:46:40 UTC."""
GPUS = 2.0
VOTE, STAY, ABSTAIN = VoteKind.VOTE, VoteKind.STAY, VoteKind.ABSTAIN


START = PolicyState()


def vote(rule, seen, state=START, now=NOW, **changes):
    found = rule(policy_inputs(seen, state, now, settings(**changes), GPUS))
    return found.kind, found.groups


JUST_AWAKE = PolicyState(woke_at=NOW - 59)
AWAKE = PolicyState(woke_at=NOW - 60)
WARMING = PolicyState(warming_since=NOW - 10)
OVERDUE = PolicyState(warming_since=NOW - 601)


@pytest.mark.parametrize(
    ("seen", "state", "expected"),
    [
        pytest.param(observation(2, ttft_p90=0.6), PolicyState(), (VOTE, 2), id="in-the-band"),
        pytest.param(observation(2, ttft_p90=0.8), PolicyState(), (VOTE, 2), id="band-edge"),
        pytest.param(observation(2, ttft_p90=1.2), PolicyState(), (VOTE, 3), id="ttft-high"),
        pytest.param(observation(2, itl_p90=0.12), PolicyState(), (VOTE, 3), id="itl-high"),
        pytest.param(observation(2, ttft_p90=50.0), PolicyState(), (VOTE, 5), id="clamped"),
        pytest.param(
            observation(4, ready=2, ttft_p90=1.2), WARMING, (VOTE, 4), id="warming-gets-credit"
        ),
        pytest.param(
            observation(4, ready=2, ttft_p90=50.0), WARMING, (VOTE, 5), id="credit-is-not-enough"
        ),
        pytest.param(
            observation(4, ready=2, ttft_p90=1.2), OVERDUE, (VOTE, 5), id="overdue-gets-none"
        ),
        pytest.param(observation(2, ttft_p90=0.1), PolicyState(), (VOTE, 1), id="low"),
        pytest.param(observation(1, ttft_p90=46.0), JUST_AWAKE, (STAY, 1), id="cold-start"),
        pytest.param(observation(1, ttft_p90=46.0), AWAKE, (VOTE, 3), id="after-the-cold-start"),
        pytest.param(
            observation(2, ttft_p90=0.41), PolicyState(), (VOTE, 2), id="one-fewer-would-be-high"
        ),
        pytest.param(
            observation(4, ready=2, ttft_p90=0.1), WARMING, (VOTE, 4), id="ramp-up-not-inverted"
        ),
        pytest.param(observation(2, base=IDLE), PolicyState(), (VOTE, 1), id="no-requests"),
        pytest.param(observation(2, ttft_p90=None), PolicyState(), (STAY, 2), id="no-quantile"),
        pytest.param(
            observation(2, itl_p90=None), PolicyState(), (VOTE, 1), id="one-token-answers-only"
        ),
        pytest.param(observation(2, request_rate=None), PolicyState(), (STAY, 2), id="no-rate"),
        pytest.param(observation(8, ttft_p90=0.1), PolicyState(), (VOTE, 7), id="low-one-goes"),
        pytest.param(observation(100, ttft_p90=0.1), PolicyState(), (VOTE, 80), id="low-a-fifth"),
        pytest.param(
            observation(100, ready=100, ttft_p90=0.49, itl_p90=0.0),
            PolicyState(),
            (VOTE, 80),
            id="low-inside-the-band-after",
        ),
        pytest.param(observation(2, age=31.0), PolicyState(), (STAY, 2), id="old"),
        pytest.param(observation(2, gap=0.51), PolicyState(), (STAY, 2), id="gaps"),
        pytest.param(observation(2, fleet=False), PolicyState(), (STAY, 2), id="no-ready-count"),
        pytest.param(
            observation(2, fleet=False, ready_groups=2, ttft_p90=0.1),
            PolicyState(),
            (VOTE, 1),
            id="ready-count-of-prometheus",
        ),
    ],
)
def test_slo_pressure(seen, state, expected):
    assert vote(rules.slo_pressure, seen, state) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(observation(2), (VOTE, 1), id="nobody-waits"),
        pytest.param(observation(2, queue_wait_p90=1.2), (VOTE, 3), id="long"),
        pytest.param(observation(2, queue_wait_p90=0.7), (VOTE, 2), id="in-the-band"),
        pytest.param(observation(2, queue_wait_p90=None), (VOTE, 1), id="none-placed-none-waits"),
        pytest.param(
            observation(2, queue_wait_p90=None, queue_requests=3), (STAY, 2), id="none-placed-yet"
        ),
        pytest.param(observation(2, queue_requests=None), (STAY, 2), id="no-queue-length"),
        pytest.param(observation(2, age=31.0), (STAY, 2), id="old"),
    ],
)
def test_queue_wait(seen, expected):
    assert vote(rules.queue_wait, seen) == expected


def test_waits_of_a_cold_start_are_not_counted():
    seen = observation(1, queue_wait_p90=46.0)
    assert vote(rules.queue_wait, seen, JUST_AWAKE) == (STAY, 1)
    assert vote(rules.queue_wait, seen, AWAKE) == (VOTE, 3)


@pytest.mark.parametrize(
    ("seen", "state", "changes", "expected"),
    [
        pytest.param(observation(2, token_rate=1200), PolicyState(), {}, (VOTE, 2), id="in-band"),
        pytest.param(observation(2, token_rate=1700), PolicyState(), {}, (VOTE, 3), id="over"),
        pytest.param(observation(4, token_rate=900), PolicyState(), {}, (VOTE, 2), id="under"),
        pytest.param(
            observation(2, token_rate=1200, queue_tokens=60_000),
            PolicyState(),
            {},
            (VOTE, 4),
            id="backlog",
        ),
        pytest.param(observation(3, ready=1, token_rate=1700), WARMING, {}, (VOTE, 3), id="credit"),
        pytest.param(
            observation(3, ready=1, token_rate=1700), OVERDUE, {}, (VOTE, 5), id="no-credit"
        ),
        pytest.param(
            observation(4, ready=1, token_rate=100), WARMING, {}, (VOTE, 4), id="not-inverted"
        ),
        pytest.param(
            observation(2),
            PolicyState(),
            {"group_tokens_per_second": None},
            (ABSTAIN, 0),
            id="capacity-unknown",
        ),
        pytest.param(
            observation(2, token_rate=1700),
            PolicyState(capacity=500.0),
            {"group_tokens_per_second": None},
            (VOTE, 5),
            id="capacity-learnt",
        ),
        pytest.param(observation(2, token_rate=None), PolicyState(), {}, (STAY, 2), id="missing"),
        pytest.param(observation(2, gap=0.6), PolicyState(), {}, (STAY, 2), id="gaps"),
    ],
)
def test_throughput(seen, state, changes, expected):
    assert vote(rules.throughput, seen, state, **changes) == expected


@pytest.mark.parametrize(
    ("seen", "idle_since", "changes", "expected"),
    [
        pytest.param(observation(2), None, {}, (VOTE, 1), id="work"),
        pytest.param(observation(1, base=IDLE), NOW - 599, {}, (VOTE, 1), id="idle-not-long"),
        pytest.param(observation(1, base=IDLE), NOW - 600, {}, (VOTE, 0), id="idle"),
        pytest.param(observation(0, base=IDLE), NOW, {}, (VOTE, 0), id="sleeps-on"),
        pytest.param(
            observation(1, base=IDLE, inflight=1), NOW - 900, {}, (VOTE, 1), id="in-flight"
        ),
        pytest.param(observation(1, inflight=None), None, {}, (STAY, 1), id="missing"),
        pytest.param(
            observation(2, base=IDLE), NOW - 900, {"min_groups": 1}, (ABSTAIN, 0), id="kept-awake"
        ),
    ],
)
def test_activity(seen, idle_since, changes, expected):
    assert vote(rules.activity, seen, PolicyState(idle_since=idle_since), **changes) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(observation(0, parked=3), (VOTE, 1), id="parked"),
        pytest.param(observation(0, parked=0), (ABSTAIN, 0), id="nobody"),
        pytest.param(observation(2, ready=1, parked=3), (ABSTAIN, 0), id="a-group-is-ready"),
        pytest.param(observation(0, fleet=False), (ABSTAIN, 0), id="no-router"),
        pytest.param(observation(0, parked=3, age=999.0), (VOTE, 1), id="needs-no-scrape"),
    ],
)
def test_parked(seen, expected):
    assert vote(rules.parked, seen) == expected


NIGHT = {"schedule": [{"when": "* 22-23,0-5 * * *", "groups": 3}]}
ALWAYS = {"schedule": [{"when": "* * * * *", "groups": 2}, {"when": "* 13 * * 1", "groups": 4}]}


@pytest.mark.parametrize(
    ("lines", "batch", "hour", "expected"),
    [
        pytest.param(9, {}, 0, (ABSTAIN, 0), id="off-by-default"),
        pytest.param(9, NIGHT, 0, (ABSTAIN, 0), id="by-day"),
        pytest.param(9, NIGHT, 9, (VOTE, 3), id="by-night"),
        pytest.param(0, NIGHT, 9, (ABSTAIN, 0), id="without-lines"),
        pytest.param(None, NIGHT, 9, (ABSTAIN, 0), id="unknown-lines"),
        pytest.param(9, ALWAYS, 0, (VOTE, 4), id="highest-window"),
        pytest.param(9, ALWAYS, 1, (VOTE, 2), id="the-other-window"),
        # A group costs 2 x 5 an hour.
        pytest.param(9, ALWAYS | {"max_hourly_cost": 40.0}, 0, (VOTE, 4), id="affordable"),
        pytest.param(9, ALWAYS | {"max_hourly_cost": 35.0}, 0, (VOTE, 3), id="price-cap"),
        pytest.param(9, ALWAYS | {"max_hourly_cost": 9.0}, 0, (ABSTAIN, 0), id="too-expensive"),
    ],
)
def test_batch(lines, batch, hour, expected):
    seen = observation(1, batch_lines=lines, gpu_hour_price=5.0)
    assert vote(rules.batch, seen, now=NOW + 3600 * hour, batch=batch) == expected


@pytest.mark.parametrize("price", [None, 0.0])
def test_a_price_cap_needs_a_price(price):
    seen = observation(1, batch_lines=9, gpu_hour_price=price)
    assert vote(rules.batch, seen, batch=ALWAYS) == (VOTE, 4)
    assert vote(rules.batch, seen, batch=ALWAYS | {"max_hourly_cost": 40.0}) == (ABSTAIN, 0)


def test_old_numbers_of_lines_hold_no_group():
    assert vote(rules.batch, observation(2, batch_lines=9, age=31.0), batch=ALWAYS) == (ABSTAIN, 0)


def test_every_vote_says_why():
    inputs = policy_inputs(observation(2), PolicyState(), NOW, settings(), GPUS)
    assert all(rule(inputs).reason for rule in (*rules.RULES, rules.parked))
