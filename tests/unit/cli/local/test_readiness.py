"""The output while the groups start, and when they change later."""

import io
from typing import Any

import pytest

from serving.cli.local import readiness
from serving.cli.local.progress import LineProgress
from serving.cli.local.readiness import GroupNews, Readiness, ready_groups, show, why_not_ready
from serving.engine.ray.startup_progress import RankReport, Stage
from serving.engine.ray.watch import DeploymentView, Phase
from serving.errors import EngineError, PlacementError, SettingsError
from serving.settings import GroupSettings, Settings
from tests.support.clock import SteppingClock


def report(rank: int, stage: Stage, error_type: str = "", error: str = "") -> RankReport:
    return RankReport("g", rank, 2, stage, "10.0.0.1", 1, 0.0, error_type, error)


def view(*reports: RankReport, phase: Phase = Phase.DEPLOYING) -> DeploymentView:
    return DeploymentView(phase, "", reports)


def fleet(state: str | None, ranks: int = 2, reason: str = "") -> dict[str, Any]:
    members = [{"rank": rank} for rank in range(ranks)]
    group = {"group_id": "g", "state": state, "reason": reason, "ranks": members}
    return {"groups": [group] if state else []}


class Shown(LineProgress):
    """Keeps the last text of each part."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), SteppingClock())
        self.parts: dict[str, tuple[str, bool]] = {}

    def set(self, part: str, text: str, *, done: bool = False) -> None:
        self.parts[part] = (text, done)

    def drop(self, part: str) -> None:
        self.parts.pop(part, None)


LOADING = report(0, Stage.LOADING)


@pytest.mark.parametrize(
    ("rank", "seen", "expected"),
    [
        pytest.param(LOADING, None, ("loading the model on 10.0.0.1", False), id="no router yet"),
        pytest.param(LOADING, fleet(None), ("loading the model on 10.0.0.1", False), id="loading"),
        pytest.param(
            report(0, Stage.JOINING), fleet("joining"), ("joined, group joining", False), id="in"
        ),
        pytest.param(report(0, Stage.JOINING), fleet("ready"), ("ready", True), id="ready"),
        pytest.param(
            report(0, Stage.FAILED, "E", "no memory"),
            fleet("fenced"),
            ("failed: no memory", False),
            id="failed",
        ),
    ],
)
def test_line_of_a_rank(
    rank: RankReport, seen: dict[str, Any] | None, expected: tuple[str, bool]
) -> None:
    shown = Shown()
    show(shown, view(rank), seen, "http://r")
    assert shown.parts.pop("group g rank 0") == expected
    assert shown.parts == ({} if seen is None else {"router": ("up at http://r", True)})


@pytest.mark.parametrize(
    ("reports", "seen", "words"),
    [
        ((LOADING,), None, "the router does not respond"),
        ((LOADING,), fleet(None), "rank 0 of g is loading the model"),
        ((LOADING,), fleet("joining"), "group g is joining"),
        ((), fleet(None), "no rank has started"),
    ],
)
def test_why_not_ready(
    reports: tuple[RankReport, ...], seen: dict[str, Any] | None, words: str
) -> None:
    assert why_not_ready(view(*reports), seen) == words


def test_only_ready_groups_count() -> None:
    assert [ready_groups(fleet(state)) for state in ("ready", "fenced", None)] == [1, 0, 0]


def test_only_groups_of_the_pool_count() -> None:
    def group(state: str, **names: str) -> dict[str, str]:
        return {"state": state} | names

    groups = [
        group("ready", model="m", pool="p"),
        group("joining", model="m", pool="p"),
        group("ready", model="m", pool="other"),
        group("ready", model="other", pool="p"),
        group("ready"),  # of a router that knows no pools
    ]
    found = readiness.of_pool({"groups": groups}, "m", "p")
    assert readiness.ready_groups(found) == 2
    assert len(found["groups"]) == 3


def test_news_are_changes() -> None:
    news = GroupNews()
    assert news.look(fleet("ready")) == []
    assert news.look(fleet("ready")) == []
    assert news.look(fleet("fenced", reason="rank 1 was lost")) == [
        "group g: fenced (rank 1 was lost)"
    ]
    assert news.look(fleet(None)) == ["group g: gone"]
    assert news.look(fleet(None)) == []
    assert news.look(fleet("ready")) == ["group g: ready"]


def waiting(
    monkeypatch: pytest.MonkeyPatch,
    looks: list[tuple[DeploymentView, dict[str, Any] | None]],
    missing: str | PlacementError | None = None,
) -> tuple[Readiness, Shown]:
    """A wait that returns ``looks`` one after the other, then repeats the last one."""

    class Watch:
        def __init__(self, *_: object) -> None: ...

        def poll(self) -> DeploymentView:
            return (looks.pop(0) if len(looks) > 1 else looks[0])[0]

    class Placement:
        def __init__(self, *_: object) -> None: ...

        def check(self) -> str | None:
            if isinstance(missing, PlacementError):
                raise missing
            return missing

    monkeypatch.setattr(readiness, "DeploymentWatch", Watch)
    monkeypatch.setattr(readiness, "PlacementWatch", Placement)
    monkeypatch.setattr(readiness, "ask_fleet", lambda *_: looks[0][1])
    monkeypatch.setattr(readiness, "POLL_SECONDS", 0.0)
    shown = Shown()
    settings = Settings(group=GroupSettings(start_timeout=20.0))
    return Readiness(settings, "http://r", shown, SteppingClock()), shown


def alive() -> None:
    pass


def test_waits_until_the_group_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[DeploymentView, dict[str, Any] | None]] = [
        (view(), None),
        (view(LOADING), fleet(None)),
        (view(LOADING), fleet("joining")),
        (view(LOADING), fleet("ready")),
    ]
    wait, shown = waiting(monkeypatch, looks, missing="needs 2 nodes")
    wait.wait(alive)
    assert shown.parts["groups"] == ("1 ready", True)


@pytest.mark.parametrize(
    ("seen", "missing", "kind", "words"),
    [
        pytest.param(
            view(report(1, Stage.FAILED, "SettingsError", "bad x")), None, SettingsError, "bad x",
            id="settings",
        ),
        pytest.param(view(LOADING), None, EngineError, "start_timeout .* is loading", id="late"),
        pytest.param(view(), PlacementError("no room"), PlacementError, "no room", id="no room"),
    ],
)  # fmt: skip
def test_gives_up(
    monkeypatch: pytest.MonkeyPatch,
    seen: DeploymentView,
    missing: PlacementError | None,
    kind: type[Exception],
    words: str,
) -> None:
    wait, _ = waiting(monkeypatch, [(seen, fleet(None))], missing)
    with pytest.raises(kind, match=words):
        wait.wait(alive)


def test_a_death_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead() -> None:
        raise EngineError("the router did not start: x")

    wait, _ = waiting(monkeypatch, [(view(), None)])
    with pytest.raises(EngineError, match="the router did not start"):
        wait.wait(dead)
