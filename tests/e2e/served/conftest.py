"""One running system for all tests of this folder: ``up`` with the settings of the chart's pods.

The settings are those that Helm renders for pocket-r1 on CPU nodes, so clients need a key.
``MOE_TEST_UP_FLAGS`` adds flags of ``up``, such as ``--speculative mtp``.
"""

import os
import shlex
import signal
import subprocess
import sys
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
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Stack:
    """Addresses of the system, and keys for it."""

    up: Up
    rest: str
    """URL of the REST server."""
    grpc: str
    """Address of the gRPC server, host:port."""
    model: str
    key: str
    """A client's API key; empty without Helm, because ``up``'s own settings require none."""
    operator: Access
    client_keys: Mapping[str, Keys]
    """Keys of the released clients in tests/clients, by client name."""

    @property
    def target(self) -> Target:
        """Return the target for released clients."""
        return Target(self.rest, self.grpc, self.model, self.client_keys)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a client's requests."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


def chart_settings(folder: Path) -> tuple[str, ...]:
    """Write the settings file that Helm renders for pocket-r1 on CPU nodes; return up's flags.

    The file is taken from the ConfigMap unchanged. The flags specify what exists only in a pod: the
    files of Secrets, and addresses. Without Helm, return no flags.
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
    """One group of two ranks of the bundled model, on free ports; ended by Ctrl-C."""
    folder = tmp_path_factory.mktemp("state")
    chart = chart_settings(folder)
    client_keys = add_client_keys(folder / "keys.yaml") if chart else {}
    # The ranks take the first free ports from this one on.
    metrics = f"telemetry.rank_metrics_port={min(held_port(), 65000)}"
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
        assert up.process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client with a key."""
    with httpx.Client(base_url=stack.rest, headers=stack.headers, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def eventually_idle(stack: Stack) -> Callable[[], None]:
    """Wait until no engine has a request."""

    def idle() -> bool:
        groups = stack.up.get("/fleet")["groups"]
        ranks = [rank for group in groups for rank in group["ranks"]]
        return not any(rank["running_requests"] + rank["inflight_requests"] for rank in ranks)

    return lambda: wait_until(idle, "the end of all requests")
