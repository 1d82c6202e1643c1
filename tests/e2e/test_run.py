"""``moe-serving up`` as a user types it, in a process of its own, on free ports.

What is about processes runs with the fake engine, which starts in seconds; one test has the
real one.
"""

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.cli import supervisor
from serving.cli.access import local_access
from serving.cli.state import RunState, StateFile
from serving.credentials.tokens import new_token
from tests.helm.chart import HELMS, find, render

pytestmark = pytest.mark.e2e

STOP_LIMIT = 15.0
"""Seconds from Ctrl-C until every process is gone; the contract's number."""
ORPHAN_LIMIT = 30.0
"""Seconds after a kill -9 of up; its keeper leaves them 3 to end by themselves."""
START_LIMIT = 300
FAKE = ("--set", "engine.kind=fake")
FREE_PORTS = ("--port", "0", "--grpc-port", "0", "--join-port", "0")


class Up:
    """One ``moe-serving up`` in the foreground."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "MOE_SERVING_STATE_DIR": str(folder),
            **environment,
        }
        self.errors = folder / "stderr"
        folder.mkdir(exist_ok=True)
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", "up", *FREE_PORTS, *flags],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                text=True,
                # As in a terminal: Ctrl-C goes to the whole group.
                start_new_session=True,
            )
        self.lines: list[str] = []

    def wait_line(self, pattern: str) -> str:
        """Read on until a line matches; the test's time-out bounds it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"ended with {self.process.wait()}: {self.said()}")

    def read_rest(self) -> str:
        """Read on until it ends."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self.lines += rest.splitlines()
        return rest

    def said(self) -> str:
        """Return all it has said so far."""
        return "\n".join(self.lines) + "\n" + self.errors.read_text()

    def error_lines(self) -> list[str]:
        """Return the error lines that it has printed."""
        return [line for line in self.errors.read_text().splitlines() if line.startswith("error:")]

    def state(self) -> RunState:
        """Return the state file's content."""
        state = StateFile(self.folder).read()
        assert state is not None
        return state

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same state folder."""
        return subprocess.run(
            [sys.executable, "-m", "serving", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT,
        )

    def get(self, path: str) -> Any:
        """Return JSON from the router."""
        headers = local_access(self.folder).headers()
        request = urllib.request.Request(self.state().rest_url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def all_processes(self) -> list[psutil.Process]:
        """Return every process of this run: those found now and those written down."""
        found = {process.pid: process for process in supervisor.living(self.state().processes)}
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            found |= {process.pid: process for process in [me, *me.children(recursive=True)]}
        return list(found.values())

    def end(self) -> None:
        """Clean up whatever a failed test has left."""
        with contextlib.suppress(AssertionError):
            supervisor.end(self.state().processes, grace=0.0)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(folder: Path, *flags: str, **environment: str) -> Iterator[Up]:
    up = Up(folder, *flags, **environment)
    try:
        yield up
    finally:
        up.end()


def gone_within(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait for processes to end; return those that did not."""
    deadline = time.monotonic() + seconds
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert time.monotonic() < deadline + 1
    return [
        f"{process.pid} {process.name()}"
        for process in alive
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def part(processes: list[psutil.Process], name: str) -> psutil.Process:
    (process,) = (item for item in processes if name in " ".join(item.cmdline())[:300])
    return process


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach it; ``::ffff:127.0.0.1`` too."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


@pytest.fixture(scope="module")
def fake_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running system with fake engines that the tests below share."""
    with (
        # Ranks of other runs must not hear "leave". Short: Ray's sockets are in it.
        tempfile.TemporaryDirectory(prefix="l-", dir="/tmp") as short,
        started(tmp_path_factory.mktemp("up"), *FAKE, "--no-sample", TMPDIR=short) as up,
    ):
        up.wait_line("^READY ")
        yield up


def test_ready_line_has_the_urls(fake_up: Up) -> None:
    ready = next(line for line in fake_up.lines if line.startswith("READY"))
    assert ready.startswith(f"READY {fake_up.state().rest_url}/v1 (REST) ")
    assert fake_up.state().grpc_address in ready
    assert sum(line.startswith("READY") for line in fake_up.lines) == 1


def test_progress_names_everypart(fake_up: Up) -> None:
    said = fake_up.errors.read_text()
    for words in (
        r"router: up at http",
        r"ray: running",
        r"rank 0: \w+",
        r"rank 1: \w+",
        r"1 ready",
    ):
        assert re.search(words, said), f"{words} not in {said}"


def test_fleet_and_status_show_the_group(fake_up: Up) -> None:
    (group,) = fake_up.get("/fleet")["groups"]
    assert group["state"] == "ready"
    assert [rank["rank"] for rank in group["ranks"]] == [0, 1]
    assert {rank["node"] for rank in group["ranks"]} == {"127.0.0.1"}
    shown = fake_up.run("status")
    assert shown.returncode == 0
    assert "1 of 1 group ready" in shown.stdout
    assert re.search(rf"{group['group_id']} +ready +0/2", shown.stdout)
    assert json.loads(fake_up.run("status", "--json").stdout)["fleet"]["groups"]


def test_a_second_up_is_refused(fake_up: Up) -> None:
    second = fake_up.run("up", *FREE_PORTS, *FAKE)
    assert second.returncode == 1
    assert second.stderr.startswith("error: moe-serving is already up at http://")
    assert fake_up.process.poll() is None


def test_everything_listens_on_loopback_alone(fake_up: Up) -> None:
    open_to_all = {
        f"{process.name()} {connection.laddr}"
        for process in fake_up.all_processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip)
    }
    assert not open_to_all


def test_a_router_that_dies_is_started_anew_and_gets_its_ranks_back(fake_up: Up) -> None:
    (before,) = fake_up.get("/fleet")["groups"]
    part(fake_up.all_processes(), "serving router").kill()
    fake_up.wait_line("starting it anew")
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            groups = fake_up.get("/fleet")["groups"]
            if [group["state"] for group in groups] == ["ready"]:
                break
        assert time.monotonic() < deadline, "the ranks did not come back"
        time.sleep(0.2)
    (after,) = groups
    assert after["epoch"] == before["epoch"]
    assert [rank["pid"] for rank in after["ranks"]] == [rank["pid"] for rank in before["ranks"]]


def test_a_killed_rank_takes_its_gang_down_and_a_new_one_comes(fake_up: Up) -> None:
    (old,) = fake_up.get("/fleet")["groups"]
    ranks = [psutil.Process(rank["pid"]) for rank in old["ranks"]]
    ranks[1].kill()
    fake_up.wait_line(rf"group (?!{old['group_id']})\w+: ready")
    groups = {group["group_id"]: group for group in fake_up.get("/fleet")["groups"]}
    groups.pop(old["group_id"], None)
    (new,) = groups.values()
    assert new["state"] == "ready"
    assert new["epoch"] != old["epoch"]
    assert gone_within(ranks, STOP_LIMIT) == []


def test_ranks_whose_machine_goes_leave_the_router(fake_up: Up) -> None:
    """As a pod's preStop hook asks them to."""
    left = fake_up.run("leave", "--timeout", "60")
    assert left.returncode == 0, left.stdout + left.stderr
    assert left.stdout == "ranks asked to leave: 2\nall have left\n"
    fake_up.wait_line(r"group \w+: draining")
    (group,) = fake_up.get("/fleet")["groups"]
    assert group["state"] == "draining"
    assert [rank["draining"] for rank in group["ranks"]] == [True, True]
    assert fake_up.run("leave").stdout == "no rank runs here\n"


def test_ctrl_c_ends_every_process(fake_up: Up) -> None:
    processes = fake_up.all_processes()
    assert len(processes) > 5
    folder = Path(fake_up.state().ray_folder)
    assert folder.is_dir()
    # A terminal sends it to the whole foreground group.
    os.killpg(fake_up.process.pid, signal.SIGINT)
    assert gone_within(processes, STOP_LIMIT) == []
    assert fake_up.process.wait(5) == 0
    assert "stopped in" in fake_up.read_rest()
    assert StateFile(fake_up.folder).read() is None
    assert not folder.exists()


def test_detach_and_down(tmp_path: Path) -> None:
    environment = {**os.environ, "MOE_SERVING_STATE_DIR": str(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "serving", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT,
        )

    up = run("up", "--detach", *FREE_PORTS, *FAKE)
    assert up.returncode == 0, up.stdout + up.stderr
    assert re.search(r"^READY http", up.stdout, re.MULTILINE)
    assert "What is 17+25?" in up.stdout
    state = StateFile(tmp_path).read()
    assert state is not None
    processes = supervisor.living((state.up, *state.processes))
    assert len(processes) > 5
    down = run("down")
    assert down.returncode == 0, down.stderr
    assert re.match(r"stopped in \d", down.stdout)
    assert gone_within(processes, 1.0) == []
    assert run("down").stdout == "nothing is running\n"


def test_kill_9_of_up_leaves_no_orphan(tmp_path: Path) -> None:
    with started(tmp_path, *FAKE, "--no-sample") as up:
        up.wait_line("^READY ")
        processes = up.all_processes()
        up.process.kill()
        assert gone_within(processes, ORPHAN_LIMIT) == []
        status = up.run("status")
        assert status.returncode == 1
        assert "ended without cleaning up" in status.stderr
        assert up.run("down").returncode == 0
        assert "nothing is running here" in up.run("status").stderr


def test_ray_that_dies_ends_up_with_an_error(tmp_path: Path) -> None:
    with started(tmp_path, *FAKE, "--no-sample") as up:
        up.wait_line("^READY ")
        processes = up.all_processes()
        folder = Path(up.state().ray_folder)
        part(processes, "raylet/raylet").kill()
        assert up.process.wait(60) == 1
        assert gone_within(processes, STOP_LIMIT) == []
        (line,) = up.error_lines()
        assert "Ray ended by itself" in line
        assert f"logs: {tmp_path}/logs/router.log and {tmp_path}/logs/ray" in line
        assert (tmp_path / "logs" / "ray" / "gcs_server.out").exists()
        assert not folder.exists()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(tmp_path, *FAKE, "--port", str(port)) as up:
            assert up.process.wait(60) == 1
            (line,) = up.error_lines()
            assert f"the REST port {port} on 127.0.0.1 is taken" in line
            assert "ray" not in up.said().replace(str(tmp_path), "").lower()


@pytest.mark.vllm
def test_a_bad_engine_argument_is_one_clear_line(tmp_path: Path) -> None:
    with started(tmp_path, "--set", "engine.args.no_such_argument=1") as up:
        assert up.process.wait(START_LIMIT) == 1
        (line,) = up.error_lines()
        assert "no_such_argument" in line
        assert "Traceback" not in up.said()


def chart_settings(folder: Path) -> tuple[str, ...]:
    """Write the settings file that Helm renders for pocket-r1 on CPU nodes; return up's flags.

    The file is the ConfigMap's, unchanged. Given beside it is what a pod has and this machine has
    not: the Secrets' files, and addresses. Nothing where there is no Helm.
    """
    if not HELMS["4"].is_file():
        return ()
    objects = render("pocket-r1-cpu")
    text = find(objects, "ConfigMap", "-settings")["data"]["settings.yaml"]
    (folder / "chart.yaml").write_text(text)
    made = subprocess.run(
        [sys.executable, "-m", "serving", "keys", "new", "--tenant", "me",
         "--file", str(folder / "keys.yaml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder / "key").write_text(made.stdout.strip())
    (folder / "token").write_text(new_token() + "\n")
    sets = (
        f"security.keys_file={folder / 'keys.yaml'}",
        f"security.join_token_file={folder / 'token'}",
        f"link.token_file={folder / 'token'}",
        "router.host=127.0.0.1",
        "router.join_host=127.0.0.1",
    )
    return ("--config", str(folder / "chart.yaml"), *(w for s in sets for w in ("--set", s)))


@pytest.mark.vllm
def test_the_real_thing(tmp_path: Path) -> None:
    """Its settings are those that the chart renders for pocket-r1 on CPU nodes."""
    chart = chart_settings(tmp_path)
    with started(tmp_path, *chart) as up:
        up.wait_line("^READY ")
        up.wait_line("^you: What is 17")
        up.wait_line("^answer: ")
        (group,) = up.get("/fleet")["groups"]
        total = group["total_experts"]
        held = [rank["local_expert_ids"] for rank in group["ranks"]]
        assert [len(ids) for ids in held] == [total // 2, total // 2]
        assert sorted(held[0] + held[1]) == list(range(total))
        before = [sum(rank["expert_tokens"]) for rank in group["ranks"]]

        request = urllib.request.Request(
            up.state().rest_url + "/v1/completions",
            json.dumps(
                {"model": "pocket-r1", "prompt": "What is 1+1?", "max_tokens": 40,
                 "ignore_eos": True}
            ).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        if chart:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request, timeout=120)
            request.add_header("authorization", f"Bearer {(tmp_path / 'key').read_text()}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 40

        def grown() -> bool:
            (now,) = up.get("/fleet")["groups"]
            counts = [sum(rank["expert_tokens"]) for rank in now["ranks"]]
            return all(new > old for new, old in zip(counts, before, strict=True))

        # Load snapshots come every half second.
        deadline = time.monotonic() + 30
        while not grown():
            assert time.monotonic() < deadline, "no expert counted a token"
        shown = up.run("status").stdout
        assert f"[0-{total // 2 - 1}] of {total}" in shown
        assert f"[{total // 2}-{total - 1}] of {total}" in shown

        processes = up.all_processes()
        os.killpg(up.process.pid, signal.SIGINT)
        assert gone_within(processes, STOP_LIMIT) == []
        assert up.process.wait(5) == 0
    if not chart:
        pytest.skip("no Helm in .tools: the real thing ran, but with up's own settings")
