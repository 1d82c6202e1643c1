"""Ranks meet, and never read a stale entry."""

import asyncio
import json

import pytest

from serving.engine.ray.rendezvous import (
    KEEP_SECONDS,
    GangMember,
    Meeting,
    Rendezvous,
    sweep,
)
from serving.engine.ray.startup_progress import Stage, StageBoard, StageWriter
from serving.errors import EngineError, PlacementError, SettingsError
from tests.support.clock import ManualClock, SteppingClock
from tests.support.waiting import PATIENCE


class DictStore:
    """The store of one cluster."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def put_new(self, key: str, value: bytes) -> bool:
        return self.content.setdefault(key, value) is value

    def put(self, key: str, value: bytes) -> None:
        self.content[key] = value

    def get(self, key: str) -> bytes | None:
        return self.content.get(key)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.content if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        self.content.pop(key, None)


def member(rank: int, gang_id: str = "aa11", replicas: str = "xy", app: str = "app") -> GangMember:
    return GangMember(app, gang_id, rank, 2, tuple(replicas))


def no_port(_address: str) -> int:
    raise AssertionError("only rank 0 chooses a port")


async def test_others_learn_what_rank_0_chose() -> None:
    store, clock = DictStore(), ManualClock()
    other = asyncio.create_task(Rendezvous(store, member(1), clock).meet("10.0.0.2", no_port, 60))
    first = await Rendezvous(store, member(0), clock).meet("10.0.0.1", lambda _: 4711, 60)
    assert (first.address, first.rpc_port, first.made_at) == ("10.0.0.1", 4711, 1000.0)
    assert await asyncio.wait_for(other, PATIENCE) == first


async def test_epochs_differ() -> None:
    store, clock = DictStore(), ManualClock()
    epochs = {
        (await Rendezvous(store, member(0, gang), clock).meet("a", lambda _: 1, 1)).epoch
        for gang in ("g1", "g2", "g3")
    }
    assert len(epochs) == 3


async def test_gives_up_when_rank_0_does_not_come() -> None:
    waiting = Rendezvous(DictStore(), member(1), SteppingClock(1000.0, step=20.0))
    with pytest.raises(
        EngineError, match="rank 1 of gang aa11 timed out after 30 s waiting for rank 0"
    ):
        await waiting.meet("a", no_port, 30)


@pytest.mark.parametrize(
    "stale",
    [
        pytest.param(member(0, gang_id="bb22"), id="another gang"),
        pytest.param(member(0, replicas="zz"), id="the same gang id, other replicas"),
        pytest.param(member(0, app="other"), id="another application"),
    ],
)
async def test_never_reads_another_incarnation(stale: GangMember) -> None:
    store = DictStore()
    await Rendezvous(store, stale, ManualClock()).meet("old", lambda _: 1, 1)
    with pytest.raises(EngineError, match="waiting for rank 0"):
        await Rendezvous(store, member(1), SteppingClock(1000.0, step=1.0)).meet("a", no_port, 3)


async def test_a_second_rank_0_of_one_incarnation_is_refused() -> None:
    store, clock = DictStore(), ManualClock()
    await Rendezvous(store, member(0), clock).meet("a", lambda _: 1, 1)
    with pytest.raises(EngineError, match="whole gang must restart"):
        await Rendezvous(store, member(0), clock).meet("a", lambda _: 2, 1)


async def test_leaving_removes_the_entry_and_only_rank_0_leaves() -> None:
    store, clock = DictStore(), ManualClock()
    first, second = (Rendezvous(store, member(rank), clock) for rank in (0, 1))
    await first.meet("a", lambda _: 1, 1)
    second.leave()
    assert len(store.content) == 1
    first.leave()
    assert not store.content


def test_a_node_belongs_to_one_rank_of_a_gang() -> None:
    store, clock = DictStore(), ManualClock()
    first, second = (Rendezvous(store, member(rank), clock) for rank in (0, 1))
    first.claim_node("10.0.0.1")
    with pytest.raises(PlacementError, match=r"ranks 0 and 1 were both placed on node 10\.0\.0\.1"):
        second.claim_node("10.0.0.1")
    second.claim_node("10.0.0.2")
    Rendezvous(store, member(0, "other"), clock).claim_node("10.0.0.1")
    first.leave()
    assert list(store.content) == [key for key in store.content if "other" in key]


def test_sweep_removes_old_entries_only() -> None:
    store = DictStore()
    for key, age in {"p/old": KEEP_SECONDS + 1, "p/new": 5.0, "q/old": KEEP_SECONDS + 1}.items():
        store.put(key, json.dumps({"made_at": 1e9 - age}).encode())
    sweep(store, ("p/",), 1e9)
    assert sorted(store.content) == ["p/new", "q/old"]


async def test_rank_0_sweeps_what_killed_gangs_left() -> None:
    store = DictStore()
    await Rendezvous(store, member(0, "old"), ManualClock(0.0)).meet("a", lambda _: 1, 1)
    late = ManualClock(KEEP_SECONDS + 1)
    await Rendezvous(store, member(0, "new"), late).meet("a", lambda _: 1, 1)
    assert len(store.content) == 1


def test_meeting_survives_the_store() -> None:
    meeting = Meeting("10.0.0.1", 5, "e", 1.5)
    fields = {name: getattr(meeting, name) for name in Meeting.__slots__}
    assert Meeting(**json.loads(json.dumps(fields))) == meeting


def test_board_shows_the_last_word_of_each_rank_oldest_gang_first() -> None:
    store, clock = DictStore(), SteppingClock(1000.0, step=1.0)
    board = StageBoard(store, "app")
    for who in (member(1, "zz"), member(0, "zz"), member(0, "aa")):
        StageWriter(board, who, "10.0.0.1", 7, clock).enter(Stage.PLACED)
    StageWriter(board, member(0, "zz"), "10.0.0.1", 7, clock).enter(Stage.LOADING)
    seen = [(report.gang_id, report.rank, report.stage) for report in board.read()]
    assert seen == [("zz", 0, Stage.LOADING), ("zz", 1, Stage.PLACED), ("aa", 0, Stage.PLACED)]


def test_board_leaves_out_what_was_before() -> None:
    store, clock = DictStore(), ManualClock(100.0)
    board = StageBoard(store, "app")
    StageWriter(board, member(0), "a", 1, clock).enter(Stage.PLACED)
    assert len(board.read(since=100.0)) == 1
    assert board.read(since=100.5) == ()
    assert StageBoard(store, "other").read() == ()


def test_a_failure_is_one_line_with_its_type() -> None:
    store = DictStore()
    board = StageBoard(store, "app")
    writer = StageWriter(board, member(0), "a", 1, ManualClock())
    writer.fail(SettingsError("engine.args.foo:\n  unknown"))
    (report,) = board.read()
    assert (report.stage, report.error_type) == (Stage.FAILED, "SettingsError")
    assert report.error == "engine.args.foo: unknown"
    board.remove(member(0))
    assert board.read() == ()
