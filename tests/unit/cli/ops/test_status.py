"""The output of status, and its errors without a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from serving.cli.local.state import NotRunning, RunState
from serving.cli.main import main
from serving.cli.ops import status
from serving.engine.processes import ProcessRecord

RANK = {
    "rank": 0, "node": "127.0.0.1", "pid": 11, "local_expert_ids": [0, 1, 2],
    "expert_tokens": [5, 6, 7], "inflight_requests": 1, "running_requests": 2,
    "waiting_requests": 3, "prompt_tokens_total": 40, "generated_tokens_total": 50,
    "resident_bytes": 3 * 2**20,
}  # fmt: skip
FLEET: dict[str, Any] = {
    "model": "pocket-r1",
    "inflight_requests": 1,
    "groups": [
        {
            "group_id": "aa11", "state": "ready", "reason": "", "world_size": 2,
            "total_experts": 6,
            "ranks": [RANK, RANK | {"rank": 1, "pid": 12, "local_expert_ids": [3, 4, 5]}],
        },
        {
            "group_id": "bb22", "state": "fenced", "reason": "rank 1 was lost", "world_size": 2,
            "total_experts": 6, "ranks": [RANK | {"pid": 21}],
        },
    ],
}  # fmt: skip


def state(pid: int = 2**22 + 1) -> RunState:
    return RunState(
        up=ProcessRecord(pid, 5.0, "python"), processes=(), rest_url="http://127.0.0.1:9",
        grpc_address="127.0.0.1:50051", join_address="", groups=1, ranks=2, model="m",
        started_at=100.0, log_folder="/l", ray_address="", ray_token="secret", ray_folder="",
        dashboard_url="", ready=True,
    )  # fmt: skip


def rendered(item: object) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(item)
    return out.getvalue()


def test_two_apps_are_told_apart() -> None:
    first, second = FLEET["groups"]
    apps = FLEET | {"groups": [first | {"app": "blue"}, second | {"app": "green"}]}
    lines = [line.split() for line in rendered(status.ranks_table(apps)).splitlines()]
    assert lines[0][:2] == ["app", "group"]
    assert [line[0] for line in lines[1:4]] == ["blue", "1/2", "green"]
    assert lines[1][:3] == ["blue", "aa11", "ready"]
    one = FLEET | {"groups": [item | {"app": "blue"} for item in FLEET["groups"]]}
    assert "blue" not in rendered(status.ranks_table(one))


def test_adapters_are_counted_by_model_and_rank() -> None:
    first, second = FLEET["groups"]
    held = RANK | {"adapter_slots": 4, "resident_adapters": ["a", "b"]}
    fleet = FLEET | {"groups": [first | {"ranks": [held, RANK]}, second]}
    lines = [line.split() for line in rendered(status.ranks_table(fleet)).splitlines()]
    assert "adapters" in lines[0]
    assert "2/4" in lines[1]
    assert "0/0" in lines[2]
    assert "adapters" not in rendered(status.ranks_table(FLEET))
    model = {"name": "m", "pools": [{"name": "default", "groups": 1, "ready_groups": 1}]}
    model |= {"queued_requests": 0, "adapters": [{"name": "a"}]}
    assert status.models_text({"model": "m", "models": [model]}) == "model m (1 adapter)"
    text = status.models_text({"models": [model, model | {"adapters": []}]})
    assert text == "models m (1 of 1 ready, 1 adapter), m (1 of 1 ready)"


def test_models_and_pools_are_told_apart() -> None:
    first, second = FLEET["groups"]
    pools = [{"name": "default", "groups": 1, "ready_groups": 1}]
    models = [
        {"name": "m", "pools": pools, "queued_requests": 0},
        {"name": "n", "pools": [pools[0] | {"ready_groups": 0}], "queued_requests": 3},
    ]
    groups = [
        first | {"app": "a", "model": "m", "pool": "default"},
        second | {"app": "b", "model": "n", "pool": "large"},
    ]
    fleet = FLEET | {"models": models, "groups": groups}
    lines = [line.split() for line in rendered(status.ranks_table(fleet)).splitlines()]
    # Each pool has one app: only the models are shown.
    assert lines[0][:2] == ["model", "group"]
    assert [line[0] for line in lines[1:4]] == ["m", "1/2", "n/large"]
    assert (
        status.models_text(fleet) == "models m (1 of 1 ready), n (0 of 1 ready, 3 requests waiting)"
    )
    assert status.models_text(FLEET | {"models": models[:1]}) == "model pocket-r1"
    large = pools[0] | {"name": "large", "groups": 2}
    one = models[0] | {"pools": [*pools, large], "queued_requests": 1}
    assert status.models_text(FLEET | {"models": [one]}) == (
        "model m (default 1 of 1 ready, large 1 of 2 ready, 1 request waiting)"
    )


def test_table_has_a_row_a_rank() -> None:
    lines = [line.split() for line in rendered(status.ranks_table(FLEET)).splitlines()]
    assert lines[1][:5] == ["aa11", "ready", "0/2", "127.0.0.1", "11"]
    assert lines[1][5:12] == ["[0-2]", "of", "6", "18:", "5", "6", "7"]
    assert lines[1][12:] == ["1", "2", "3", "40", "50", "3"]
    assert lines[2][0] == "1/2"
    assert "[3-5]" in lines[2]
    assert lines[3][:2] == ["bb22", "fenced"]
    assert lines[4][:3] == ["rank", "1", "was"]


def test_header() -> None:
    first, second = status.header_lines(None, state(), FLEET, now=190.0)
    assert first.plain == "1 of 2 groups ready, model pocket-r1, 1 request in flight"
    assert "up 1 min 30 s" in second.plain
    (_, where) = status.header_lines("http://h:1", None, FLEET, now=0.0)
    assert where.plain == "router http://h:1"


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "-"),
        ([3], "[3] of 16"),
        ([0, 1, 2, 3], "[0-3] of 16"),
        ([0, 2, 3, 9], "[0,2-3,9] of 16"),
        ([5, 4], "[4-5] of 16"),
    ],
)
def test_experts(ids: list[int], expected: str) -> None:
    assert status.experts_text(ids, 16) == expected


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_name_each_expert_once(ids: set[int]) -> None:
    inside = status.experts_text(sorted(ids), 301).partition("]")[0].removeprefix("[")
    named: list[int] = []
    for part in inside.split(","):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(ids)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([], "-"), ([1, 2], "3: 1 2"), (list(range(1, 11)), "55: 1 to 10 each")],
)
def test_expert_tokens(counts: list[int], expected: str) -> None:
    assert status.expert_tokens_text(counts) == expected


@pytest.mark.parametrize(
    ("found", "held", "words"),
    [
        pytest.param(None, False, "nothing is running on this machine", id="nothing"),
        pytest.param(None, True, "still starting", id="no state yet"),
        pytest.param(state(), False, "ended without cleaning up: run moe-serving down", id="crash"),
    ],
)
def test_nothing_runs(found: RunState | None, held: bool, words: str) -> None:
    with pytest.raises(NotRunning, match=words):
        status.fleet_of(None, found, held=held)


def test_command_line_when_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("error: nothing is running on this machine\n")
    assert main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["running"] is False
    assert main(["down"]) == 0
    assert capsys.readouterr().out == "nothing is running\n"


def test_no_secret_leaves() -> None:
    assert "secret" not in json.dumps(status.local_facts(state()))
