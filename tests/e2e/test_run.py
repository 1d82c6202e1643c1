"""``moe-serving up`` as a user runs it, in a separate process, on free ports.

These tests are about processes and use the fake engine, which starts in seconds; ``served`` uses
the real one.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.cli.local.state import StateFile
from serving.engine.processes import living
from tests.e2e.running import FREE_PORTS, START_LIMIT, STOP_LIMIT, Up, gone_within, started
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.e2e

ORPHAN_LIMIT = 30.0
"""Seconds after a kill -9 of up; its orphan reaper gives processes 3 to end by themselves."""
FAKE = ("--set", "engine.kind=fake")
ONE_FAKE = (*FAKE, "--ranks", "1", "--no-sample")


def part(processes: list[psutil.Process], name: str) -> psutil.Process:
    (process,) = (item for item in processes if name in " ".join(item.cmdline())[:300])
    return process


def is_loopback(address: str) -> bool:
    """Return whether an address is on the loopback, including ``::ffff:127.0.0.1``."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


@pytest.fixture(scope="module")
def fake_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running system with fake engines shared by the tests below."""
    with (
        # "leave" must not reach ranks of other runs. A short path, because Ray puts sockets there.
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
    printed = fake_up.errors.read_text()
    for words in (
        r"router: up at http",
        r"ray: running",
        r"rank 0: \w+",
        r"rank 1: \w+",
        r"1 ready",
    ):
        assert re.search(words, printed), f"{words} not in {printed}"


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
    assert second.stderr.startswith("error: moe-serving is already running at http://")
    assert fake_up.process.poll() is None


def test_everything_listens_on_loopback_alone(fake_up: Up) -> None:
    open_to_all = {
        f"{process.name()} {connection.laddr}"
        for process in fake_up.all_processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip)
    }
    assert not open_to_all


def test_a_router_that_dies_is_restarted_and_gets_its_ranks_back(fake_up: Up) -> None:
    (before,) = fake_up.get("/fleet")["groups"]
    part(fake_up.all_processes(), "serving router").kill()
    fake_up.wait_line("restarting it")

    def back() -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            groups: list[dict[str, Any]] = fake_up.get("/fleet")["groups"]
            if [group["state"] for group in groups] == ["ready"]:
                return groups
        return []

    (after,) = wait_until(back, "the group at the new router")
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
    """A pod's preStop hook does the same."""
    left = fake_up.run("leave", "--timeout", "60")
    assert left.returncode == 0, left.stdout + left.stderr
    assert left.stdout == "ranks to drain: 2\nall ranks have drained\n"
    fake_up.wait_line(r"group \w+: draining")
    (group,) = fake_up.get("/fleet")["groups"]
    assert group["state"] == "draining"
    assert [rank["draining"] for rank in group["ranks"]] == [True, True]
    assert fake_up.run("leave").stdout == "no ranks are running on this machine\n"


def test_ctrl_c_ends_every_process(fake_up: Up) -> None:
    processes = fake_up.all_processes()
    assert len(processes) > 5
    folder = Path(fake_up.state().ray_folder)
    assert folder.is_dir()
    # A terminal sends the signal to the whole foreground group.
    os.killpg(fake_up.process.pid, signal.SIGINT)
    assert gone_within(processes, STOP_LIMIT) == []
    assert fake_up.process.wait(PATIENCE) == 0
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
    processes = living((state.up, *state.processes))
    assert len(processes) > 5
    down = run("down")
    assert down.returncode == 0, down.stderr
    assert re.match(r"stopped in \d", down.stdout)
    assert gone_within(processes, 1.0) == []
    assert run("down").stdout == "nothing is running\n"


def test_kill_9_of_up_leaves_no_orphan(tmp_path: Path) -> None:
    with started(tmp_path, *ONE_FAKE) as up:
        up.wait_line("^READY ")
        processes = up.all_processes()
        up.process.kill()
        assert gone_within(processes, ORPHAN_LIMIT) == []
        status = up.run("status")
        assert status.returncode == 1
        assert "ended without cleaning up" in status.stderr
        assert up.run("down").returncode == 0
        assert "nothing is running on this machine" in up.run("status").stderr


def test_ray_that_dies_ends_up_with_an_error(tmp_path: Path) -> None:
    with started(tmp_path, *ONE_FAKE) as up:
        up.wait_line("^READY ")
        processes = up.all_processes()
        folder = Path(up.state().ray_folder)
        part(processes, "raylet/raylet").kill()
        assert up.process.wait(START_LIMIT) == 1
        assert gone_within(processes, STOP_LIMIT) == []
        (line,) = up.error_lines()
        assert "Ray exited unexpectedly" in line
        assert f"logs: {tmp_path}/logs/router.log and {tmp_path}/logs/ray" in line
        assert (tmp_path / "logs" / "ray" / "gcs_server.out").exists()
        assert not folder.exists()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(tmp_path, *FAKE, "--port", str(port)) as up:
            assert up.process.wait(START_LIMIT) == 1
            (line,) = up.error_lines()
            assert f"the REST port {port} on 127.0.0.1 is in use" in line
            assert "ray" not in up.said().replace(str(tmp_path), "").lower()


@pytest.mark.vllm
def test_a_bad_engine_argument_is_one_clear_line(tmp_path: Path) -> None:
    with started(tmp_path, "--set", "engine.args.no_such_argument=1") as up:
        assert up.process.wait(START_LIMIT) == 1
        (line,) = up.error_lines()
        assert "no_such_argument" in line
        assert "Traceback" not in up.said()
