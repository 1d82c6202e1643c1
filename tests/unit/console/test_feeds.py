"""What consoles receive: bounded, in a fixed order, and equal while nothing changes."""

import json
from base64 import b64decode

import pytest

from serving.console.experts_feed import SCALE, ExpertsFeed, matrix
from serving.console.fleet_feed import MAX_RANKS, FleetFeed, _spans
from serving.console.requests_feed import MAX_POSITIONS, MAX_REQUESTS, RequestsFeed, cancel
from serving.console.timeline import SAMPLES, Timeline
from serving.errors import InvalidRequest
from serving.fleet.models import ModelStatus
from serving.request_context import RequestContext, RequestRecord
from serving.requests.view import NO_POSITIONS, Phase, RequestView
from serving.routing.decision import RoutingDecision
from serving.routing.snapshot import LayerTokens, RankId, RankLoad, RecentExperts
from serving.telemetry.metrics import ADMISSION_PREDICTED_WAIT, ADMISSION_WAIT_ERROR
from tests.support.clock import ManualClock
from tests.support.fleets import fleet, group, loads, rank

MODELS = (
    ModelStatus("a", ("b",), ("fast", "slow"), queued_requests=3),
    ModelStatus("c", loaded=False),
)


def feed_of(*snapshots):
    clock = ManualClock()
    source = iter(snapshots)
    return FleetFeed(lambda: next(source), lambda: MODELS, clock), clock


def counted(tokens, **fields):
    made = rank(0, **fields)
    object.__setattr__(made, "load", RankLoad(generated_tokens_total=tokens))
    return fleet(group(made))


def test_rows_are_in_the_order_of_the_groups():
    feed, _ = feed_of(fleet(loads(5, 0), loads(7, name="g1")))
    parts = feed()
    content, rows = json.loads(parts["fleet"]), json.loads(parts["load"])
    assert [len(each["ranks"]) for each in content["groups"]] == [2, 1]
    assert [row[:2] for row in rows] == [[1, 5], [0, 0], [1, 7]]


def test_models_have_their_pools_and_queues():
    feed, _ = feed_of(fleet())
    first, second = json.loads(feed()["models"])
    assert (first["name"], first["pools"], first["queued"]) == ("a", ["fast", "slow"], 3)
    assert (second["pools"], second["loaded"]) == (["default"], False)


def test_the_rate_is_that_between_two_snapshots():
    feed, clock = feed_of(counted(100), counted(150), counted(20))
    rates = []
    for _ in range(3):
        rates.append(json.loads(feed()["load"])[0][5])
        clock.now += 2
    assert rates == [0, 25, 0]  # a restarted engine counts from 0


def test_an_unchanged_fleet_gives_the_same_bytes():
    still = fleet(loads(5, 0))
    feed, clock = feed_of(still, still)
    first = feed()
    clock.now += 1
    assert feed() == first


def test_a_huge_fleet_is_cut_at_whole_groups():
    groups = [loads(*[0] * 100, name=f"g{number}") for number in range(30)]
    feed, _ = feed_of(fleet(*groups))
    parts = feed()
    content = json.loads(parts["fleet"])
    assert len(content["groups"]) == MAX_RANKS // 100
    assert content["hidden_groups"] == 30 - MAX_RANKS // 100
    assert len(json.loads(parts["load"])) == 100 * len(content["groups"])


@pytest.mark.parametrize(
    ("ids", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 5), "0-2, 5"), ((7, 5, 6), "5-7")]
)
def test_spans(ids, text):
    assert _spans(ids) == text


def expert_group(*ranks):
    """A group whose ranks are (ids, tokens of layer 3)."""
    return group(*(
        rank(
            index,
            local_expert_ids=ids,
            recent_experts=RecentExperts([LayerTokens("model.layers.3.mlp.experts", tokens)]),
        )
        for index, (ids, tokens) in enumerate(ranks)
    ))  # fmt: skip


def test_a_cell_is_the_load_relative_to_the_mean_of_its_layer():
    found = matrix(expert_group(((0, 1), (10, 30)), ((2, 3), (0, 0))))
    assert list(b64decode(found["cells"])) == [SCALE, 3 * SCALE, 0, 0]
    assert (found["layers"], found["tokens"]) == ([3], [40])
    assert found["homes"] == [[0], [0], [1], [1]]


def test_a_cell_is_at_most_255_and_replicas_are_summed():
    ids = tuple(range(16))
    found = matrix(expert_group((ids, (1000, *[0] * 15)), ((0,), (1000,))))
    assert b64decode(found["cells"])[0] == 255
    assert found["tokens"] == [2000]
    assert found["homes"][0] == [0, 1]


def test_no_tokens_no_division_and_no_group_is_null():
    assert set(b64decode(matrix(expert_group(((0, 1), (0, 0))))["cells"])) == {0}
    assert matrix(group())["cells"] == ""
    assert ExpertsFeed(fleet, "absent")() == {"experts": b"null"}


class Running:
    def __init__(self, number, tenant="alice", arrived=0.0):
        record = RequestRecord(arrived_at=arrived)
        self.number = number
        self.context = RequestContext(tenant=tenant, record=record)
        self.cancelled = None

    def view(self, positions=NO_POSITIONS):
        decision = RoutingDecision(RankId("g0", "e", 1), "it is free")
        return RequestView(
            self.number, f"id-{self.number}", self.context, Phase.GENERATING, decision, "",
            positions.get(self), None, prompt_tokens=5, cached_tokens=0, output_tokens=2,
        )  # fmt: skip

    def cancel(self, reason):
        self.cancelled = reason


def listed(running, tenant=None, clock=None, positions=None):
    clock = clock or ManualClock()
    feed = RequestsFeed(lambda: running, lambda _: positions or {}, clock, tenant)
    return json.loads(feed()["requests"])


def test_requests_are_the_oldest_first_and_bounded():
    running = [Running(str(n), arrived=float(n)) for n in reversed(range(MAX_REQUESTS + 50))]
    clock = ManualClock(1000.0)
    found = listed(running, clock=clock)
    assert found["total"] == MAX_REQUESTS + 50
    assert found["phases"] == {"generating": MAX_REQUESTS}
    assert [each["number"] for each in found["requests"]] == [str(n) for n in range(MAX_REQUESTS)]
    assert found["requests"][0]["since"] == clock.time() - 1000
    assert found["requests"][0]["why"]["reason"] == "it is free"


def test_queued_requests_have_positions_and_time_alone_changes_nothing():
    running, clock = [Running("a"), Running("b")], ManualClock(10.0)
    feed = RequestsFeed(lambda: running, lambda most: {running[1]: most}, clock, None)
    first = feed()
    assert [each["position"] for each in json.loads(first["requests"])["requests"]] == [
        None,
        MAX_POSITIONS,
    ]
    clock.now += 3
    assert feed() == first


def test_a_tenant_sees_and_cancels_its_own_requests():
    running = [Running("a"), Running("b", tenant="bob")]
    assert [each["number"] for each in listed(running, "alice")["requests"]] == ["a"]
    with pytest.raises(InvalidRequest, match="may have ended"):
        cancel(lambda: running, "b", "reason", "alice")
    cancel(lambda: running, "b", "reason", None)
    assert [each.cancelled for each in running] == [None, "reason"]


def test_the_timeline_keeps_an_hour():
    clock, state = ManualClock(), {"tokens": 0}

    def snapshot():
        state["tokens"] += 100
        return counted(state["tokens"])

    timeline = Timeline(snapshot, lambda: 4, clock)
    for _ in range(SAMPLES + 5):
        timeline.sample()
        clock.now += 10
    rows = json.loads(timeline()["timeline"])["rows"]
    assert len(rows) == SAMPLES
    assert rows[-1][1:] == [1, 1, 4, 0, 0, 0, 10, None, None]


def test_predicted_waits_are_shown_beside_actual_ones():
    timeline = Timeline(lambda: counted(0), lambda: 0, ManualClock())
    for predicted, actual in ((2, 3), (4, 5)):
        ADMISSION_PREDICTED_WAIT.observe(predicted)
        ADMISSION_WAIT_ERROR.observe(actual - predicted)
    timeline.sample()
    timeline.sample()
    rows = json.loads(timeline()["timeline"])["rows"]
    assert [row[8:] for row in rows] == [[3000, 4000], [None, None]]
