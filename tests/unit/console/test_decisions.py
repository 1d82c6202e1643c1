"""The autoscaler's decisions in a router: bounded, by pool, the newest with its votes."""

import json

import pytest

from serving.console.decisions import CHANGES, MAX_POOLS, SAMPLES, DecisionLog
from serving.errors import InvalidRequest


def decision(at=1.0, current=1, target=1, **fields):
    return json.dumps({"at": at, "current": current, "target": target, "reason": "why"} | fields)


def pools(log):
    return json.loads(log()["autoscaling"])["pools"]


def add(log, *args, **fields):
    log.add(decision(*args, **fields).encode())


def test_changes_are_kept_newest_first_and_the_newest_decision_whole():
    log = DecisionLog()
    add(log, 1, 1, 2, ready=1)
    add(log, 2, 2, 1, ready=2, dry_run=True)
    vote = {"rule": "queue", "kind": "vote", "groups": 1, "reason": "short"}
    add(log, 3, 1, 1, ready=None, votes=[vote], signals={"x": None, "y": 2.5})
    [pool] = pools(log)
    assert [each["at"] for each in pool["changes"]] == [2, 1]
    assert [each["dry_run"] for each in pool["changes"]] == [True, False]
    assert pool["sizes"] == [[1, 2, 1], [2, 1, 2], [3, 1, None]]
    assert pool["newest"]["votes"] == [vote]
    assert pool["newest"]["signals"] == {"x": None, "y": 2.5}


def test_samples_changes_and_pools_are_bounded():
    log = DecisionLog()
    for number in range(SAMPLES + 5):
        add(log, number, 1, 2)
    [pool] = pools(log)
    assert (len(pool["sizes"]), len(pool["changes"])) == (SAMPLES, CHANGES)
    for number in range(MAX_POOLS + 3):
        add(log, pool=f"p{number:02}")
    names = [each["pool"] for each in pools(log)]
    assert names == [f"p{number:02}" for number in range(3, MAX_POOLS + 3)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b'{"at": 1}', id="incomplete"),
        pytest.param(decision(at="now").encode(), id="type"),
        pytest.param(decision(reason="x" * 1001).encode(), id="long"),
        pytest.param(decision(pool="x" * 301).encode(), id="long name"),
        pytest.param(decision(signals={str(n): 0 for n in range(65)}).encode(), id="many"),
    ],
)
def test_anything_else_is_refused(body):
    log = DecisionLog()
    with pytest.raises(InvalidRequest, match="not a decision"):
        log.add(body)
    assert pools(log) == []
