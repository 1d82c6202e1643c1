"""The settings of --local, and its errors without a local run."""

import stat

import pytest

from serving.autoscaler.app import gpus_of_group
from serving.cli.local.state import RunState, StateFile
from serving.cli.main import main
from serving.cli.ops.autoscaler import with_local_run
from serving.engine.processes import ProcessRecord
from serving.settings import Settings


def run_state(**changes) -> RunState:
    values = {
        "up": ProcessRecord(1, 1.0, "up"),
        "processes": (),
        "rest_url": "http://127.0.0.1:8001",
        "grpc_address": "127.0.0.1:50052",
        "join_address": "127.0.0.1:50053",
        "groups": 1,
        "ranks": 4,
        "model": "pocket-r1",
        "started_at": 1.0,
        "log_folder": "",
        "ray_address": "127.0.0.1:6379",
        "ray_token": "secret",
        "ray_folder": "",
        "dashboard_url": "http://127.0.0.1:8266",
        "ready": True,
    }
    return RunState(**(values | changes))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    return tmp_path


def test_the_run_of_this_machine_is_found(folder):
    StateFile(folder).write(run_state())
    found = with_local_run(Settings())
    scaling = found.autoscaler
    assert scaling.routers == ("http://127.0.0.1:8001",)
    assert scaling.drain_addresses == ("127.0.0.1:50052",)
    assert scaling.dashboard_url == "http://127.0.0.1:8266"
    assert found.group.data_parallel == 4
    token = folder / "ray-token"
    assert scaling.dashboard_token_file == str(token)
    assert token.read_text() == "secret"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_its_key_is_used(folder):
    (folder / "key").write_text("sk-1\n")
    (folder / "settings.yaml").write_text(
        f"security: {{keys_file: keys.yaml, operator_key_file: {folder / 'key'}}}\n"
    )
    StateFile(folder).write(run_state())
    file = with_local_run(Settings()).autoscaler.api_key_file
    assert file == str(folder / "autoscaler-key")
    assert (folder / "autoscaler-key").read_text() == "sk-1"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        pytest.param(None, "nothing is running on this machine", id="nothing"),
        pytest.param(run_state(dashboard_url=""), "ray.dashboard=true", id="no-dashboard"),
    ],
)
def test_what_is_missing_is_said(folder, capsys, state, said):
    if state is not None:
        StateFile(folder).write(state)
    assert main(["autoscaler", "explain", "--local"]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"group": {"data_parallel": 8, "tensor_parallel": 2}}, 16.0),
        ({"autoscaler": {"gpus_per_group": 0.5}}, 0.5),
    ],
)
def test_gpus_of_a_group(settings, expected):
    assert gpus_of_group(Settings(**settings)) == expected
