"""The state file: its content, its permissions, and when it is current."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.local.state import (
    AlreadyRunning,
    RunState,
    StateFile,
    decode,
    encode,
    state_folder,
    with_processes,
)
from serving.engine.processes import ProcessRecord
from serving.errors import ServingError

text = st.text(max_size=20)
records = st.builds(
    ProcessRecord, pid=st.integers(1, 2**22), create_time=st.floats(0, 2e9), name=text
)
states = st.builds(
    RunState,
    up=records,
    processes=st.lists(records, max_size=4).map(tuple),
    rest_url=text,
    grpc_address=text,
    join_address=text,
    groups=st.integers(0, 9),
    ranks=st.integers(1, 9),
    model=text,
    started_at=st.floats(0, 2e9),
    log_folder=text,
    ray_address=text,
    ray_token=text,
    ray_folder=text,
    dashboard_url=text,
    ready=st.booleans(),
    extra=st.dictionaries(st.sampled_from(["later", "much_later"]), st.integers()),
)


def example(pid: int = 7) -> RunState:
    return RunState(
        up=ProcessRecord(pid, 5.0, "python"), processes=(), rest_url="http://127.0.0.1:8000",
        grpc_address="127.0.0.1:50051", join_address="127.0.0.1:50052", groups=1, ranks=2,
        model="m", started_at=1.0, log_folder="/l", ray_address="", ray_token="t",
        ray_folder="", dashboard_url="", ready=False,
    )  # fmt: skip


@given(states)
def test_what_is_written_is_read(state: RunState) -> None:
    assert decode(encode(state)) == state


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        pytest.param({"MOE_SERVING_STATE_DIR": "/own", "XDG_STATE_HOME": "/x"}, "/own", id="own"),
        pytest.param({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/moe-serving", id="XDG"),
        pytest.param({"HOME": "/h"}, "/h/.local/state/moe-serving", id="home"),
        pytest.param(
            {"XDG_STATE_HOME": "", "HOME": "/h"}, "/h/.local/state/moe-serving", id="empty XDG"
        ),
    ],
)
def test_folder(environ: dict[str, str], folder: str) -> None:
    assert state_folder(environ) == Path(folder)


def test_file_holds_a_secret_and_is_the_owners_alone(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(example())
    file.write(example(8))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    found = file.read()
    assert found is not None
    assert found.up.pid == 8
    file.remove()
    file.remove()
    assert file.read() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"up": 3, "processes": []}', "{nonsense"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, content: str) -> None:
    file = StateFile(tmp_path)
    file.path.write_text(content)
    with pytest.raises(
        ServingError, match=r"cannot read the state file .* delete it if nothing is running"
    ):
        file.read()


def test_only_one_holds_the_folder(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path / "s"), StateFile(tmp_path / "s")
    assert not second.held()
    with first.hold():
        first.write(example())
        assert second.held()
        with (
            pytest.raises(
                AlreadyRunning, match=r"already running at http://127.0.0.1:8000 \(process 7"
            ),
            second.hold(),
        ):
            pass
    assert not second.held()
    with second.hold():
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.cli.local.state import StateFile\n"
        "with StateFile(Path(sys.argv[1])).hold():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert StateFile(tmp_path).held()
        holder.kill()
        holder.wait()
        assert not StateFile(tmp_path).held()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ServingError, match="MOE_SERVING_STATE_DIR"),
        StateFile(tmp_path / "file" / "s").hold(),
    ):
        pass


def test_processes_add_up_and_a_recycled_id_is_another_process() -> None:
    state = with_processes(example(), (ProcessRecord(1, 5.0, "a"), ProcessRecord(2, 5.0, "b")))
    state = with_processes(state, (ProcessRecord(1, 5.0, "a2"), ProcessRecord(2, 9.0, "c")))
    assert [(item.pid, item.create_time, item.name) for item in state.processes] == [
        (1, 5.0, "a2"),
        (2, 5.0, "b"),
        (2, 9.0, "c"),
    ]


def test_fields_of_a_newer_version_are_kept() -> None:
    newer = json.loads(encode(example())) | {"zone": "b"}
    state = decode(json.dumps(newer))
    assert json.loads(encode(state))["zone"] == "b"
