"""One running system for all end-to-end tests: ``up`` with what the chart gives its pods.

The settings are those that Helm renders for pocket-r1 on CPU nodes, so its clients need a key.
``MOE_TEST_UP_FLAGS`` adds flags of ``up``, such as ``--speculative mtp``.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from serving.client.credentials import Access, local_access
from serving.credentials.tokens import new_token
from tests.clients.clients import CLIENTS
from tests.clients.target import Keys, Target, add_to, make_keys
from tests.e2e.running import STOP_LIMIT, Up, gone_within, started
from tests.helm.chart import HELMS, find, render

_IDLE_WITHIN = 30.0


@dataclass(frozen=True)
class Stack:
    """Where the system listens, and who may ask it."""

    up: Up
    rest: str
    """URL."""
    grpc: str
    """host:port."""
    model: str
    key: str
    """A client's; empty: anybody may ask, as there was no Helm and ``up`` has its own settings."""
    operator: Access
    client_keys: Mapping[str, Keys]
    """Those of released clients, by name (tests/clients)."""

    @property
    def target(self) -> Target:
        """Return where released clients are tried."""
        return Target(self.rest, self.grpc, self.model, self.client_keys)

    @property
    def headers(self) -> dict[str, str]:
        """What a client's requests carry."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


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


def add_client_keys(file: Path) -> Mapping[str, Keys]:
    """Add keys for released clients to a keys file; return them."""
    keys, added = make_keys(client.name for client in CLIENTS)
    file.write_text(add_to(file.read_text("utf-8"), added), "utf-8")
    return keys


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One group of two ranks of the bundled model, on free ports; Ctrl-C ends all of it."""
    folder = tmp_path_factory.mktemp("state")
    chart = chart_settings(folder)
    client_keys = add_client_keys(folder / "keys.yaml") if chart else {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        # The ranks take the first free ports from here on.
        metrics = f"telemetry.rank_metrics_port={min(free.getsockname()[1], 65000)}"
    further = shlex.split(os.environ.get("MOE_TEST_UP_FLAGS", ""))
    with started(folder, *chart, "--set", metrics, *further) as up:
        up.wait_line("^READY ")
        up.wait_line("^answer: ")
        state = up.state()
        key = (folder / "key").read_text() if chart else ""
        operator = local_access(folder)
        yield Stack(up, state.rest_url, state.grpc_address, state.model, key, operator, client_keys)
        processes = up.all_processes()
        os.killpg(up.process.pid, signal.SIGINT)
        assert gone_within(processes, STOP_LIMIT) == []
        assert up.process.wait(5) == 0


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    """A client with a key."""
    with httpx.Client(base_url=stack.rest, headers=stack.headers, timeout=120) as client:
        yield client


@pytest.fixture
def eventually_idle(stack: Stack) -> Callable[[], None]:
    """Wait until no engine runs anything; a second is enough on an idle machine."""

    def wait() -> None:
        deadline = time.monotonic() + _IDLE_WITHIN
        while True:
            groups = stack.up.get("/fleet")["groups"]
            ranks = [rank for group in groups for rank in group["ranks"]]
            busy = sum(rank["running_requests"] + rank["inflight_requests"] for rank in ranks)
            if busy == 0:
                return
            assert time.monotonic() < deadline, f"still {busy} requests: {groups}"
            time.sleep(0.05)

    return wait
