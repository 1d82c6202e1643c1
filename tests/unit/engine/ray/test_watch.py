"""When a deployment has failed, and with which error."""

import pytest

from serving.engine.ray import cluster
from serving.engine.ray.placement import GroupNeeds, NodeRoom
from serving.engine.ray.startup_progress import RankReport, Stage
from serving.engine.ray.watch import (
    SETTLE_SECONDS,
    DeploymentView,
    Phase,
    PlacementWatch,
    failure_of,
    final_reports,
)
from serving.errors import EngineError, PlacementError, SettingsError
from tests.support.clock import ManualClock


def report(
    rank: int, stage: Stage, error_type: str = "", error: str = "", at: float = 0.0
) -> RankReport:
    return RankReport("g", rank, 2, stage, "127.0.0.1", 1, at, error_type, error)


LOADING = report(0, Stage.LOADING)
BAD_ARGS = report(1, Stage.FAILED, "SettingsError", "engine.args.x: unknown")
CRASH = report(0, Stage.FAILED, "EngineError", "out of memory", at=1.0)
SHARED = report(1, Stage.FAILED, "PlacementError", "both on node a")
LATER_CRASH = report(1, Stage.FAILED, "EngineError", "port taken", at=2.0)


@pytest.mark.parametrize(
    ("view", "kind", "words"),
    [
        pytest.param(DeploymentView(Phase.DEPLOYING, "", (LOADING,)), None, "", id="still loading"),
        pytest.param(
            DeploymentView(Phase.DEPLOYING, "Retrying", (CRASH, LOADING)),
            None,
            "",
            id="Serve tries again",
        ),
        pytest.param(
            DeploymentView(Phase.DEPLOYING, "", (LOADING, BAD_ARGS)),
            SettingsError,
            "engine.args.x: unknown",
            id="settings are final at once",
        ),
        pytest.param(
            DeploymentView(Phase.FAILED, "gave up", (CRASH, LATER_CRASH)),
            EngineError,
            "rank 1 did not start: port taken",
            id="the last failure when Serve gives up",
        ),
        pytest.param(DeploymentView(Phase.DEPLOYING, "", (SHARED,)), None, "", id="room may come"),
        pytest.param(
            DeploymentView(Phase.FAILED, "", (SHARED,)),
            PlacementError,
            "both on node a",
            id="no room for strict_spread",
        ),
        pytest.param(
            DeploymentView(Phase.FAILED, "Traceback\n  File\nValueError: no such class\n\n", ()),
            EngineError,
            "Ray Serve failed the deployment: ValueError: no such class",
            id="no rank ever spoke",
        ),
        pytest.param(
            DeploymentView(Phase.FAILED, "", ()),
            EngineError,
            "no reason given",
            id="nobody spoke",
        ),
        pytest.param(
            DeploymentView(Phase.UNHEALTHY, "x", ()), None, "", id="unhealthy: Serve restarts it"
        ),
    ],
)
def test_failure(view: DeploymentView, kind: type[Exception] | None, words: str) -> None:
    failure = failure_of(view)
    assert (type(failure) if failure else None) is kind
    assert words in str(failure or "")


class Cluster:
    """A stand-in for Ray's state."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.placed = 0
        self.free = 0.0
        monkeypatch.setattr(cluster, "placed_gangs", lambda _app: self.placed)
        monkeypatch.setattr(
            cluster, "nodes", lambda: (NodeRoom("n", {"CPU": 4.0}, {"CPU": self.free}),)
        )


def test_missing_room_is_told_and_an_error_after_the_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, clock = Cluster(monkeypatch), ManualClock(0.0)
    watch = PlacementWatch("app", GroupNeeds(1, 2, "pack", {"CPU": 2.0}), 10.0, clock)
    assert watch.check() is None
    clock.now = SETTLE_SECONDS
    assert "room for 0 of 2" in (watch.check() or "")
    clock.now = 9.9
    assert watch.check() is not None
    clock.now = 10.0
    with pytest.raises(PlacementError, match=r"no room after 10 s: .* room for 0 of 2"):
        watch.check()
    seen.free = 4.0
    assert watch.check() is None


def test_room_that_comes_and_goes_starts_the_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, clock = Cluster(monkeypatch), ManualClock(0.0)
    watch = PlacementWatch("app", GroupNeeds(1, 2, "pack", {"CPU": 2.0}), 10.0, clock)
    for now, free, missing in (
        (0, 0.0, False),
        (1, 0.0, True),
        (8, 4.0, False),
        (9, 0.0, False),
        (18, 0.0, True),
    ):
        clock.now, seen.free = float(now), free
        assert (watch.check() is not None) is missing


def test_placed_groups_need_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, clock = Cluster(monkeypatch), ManualClock(0.0)
    seen.placed = 2
    watch = PlacementWatch("app", GroupNeeds(3, 2, "pack", {"CPU": 2.0}), 10.0, clock)
    watch.check()
    clock.now = SETTLE_SECONDS
    assert "1 group of 2 ranks" in (watch.check() or "")
    seen.placed = 3
    assert watch.check() is None


def test_ranks_that_were_lost_with_their_node_are_not_shown():
    reports = [
        RankReport(gang, 0, 1, stage, "127.0.0.1", 1, 5.0)
        for gang, stage in (
            ("lost", Stage.JOINING),
            ("taken-away", Stage.JOINING),
            ("here", Stage.JOINING),
            ("waits-for-its-node", Stage.LOADING),
            ("crashed", Stage.FAILED),
        )
    ]
    states = {"here": "CREATED", "waits-for-its-node": "RESCHEDULING", "taken-away": "REMOVED"}
    shown = final_reports(reports, states)
    assert [report.gang_id for report in shown] == ["here", "waits-for-its-node", "crashed"]


def test_gangs_are_told_apart_by_application(monkeypatch):
    names = ["SERVE_GANG::r1_ranks_0_ab12", "SERVE_GANG::r1-canary_ranks_0_cd34", "other", ""]
    table = {str(n): {"name": name, "state": "CREATED"} for n, name in enumerate(names)}
    monkeypatch.setattr("ray.util.placement_group_table", lambda: table)
    assert cluster.gangs("r1") == {"ab12": "CREATED"}
    assert cluster.placed_gangs("r1") == 1
