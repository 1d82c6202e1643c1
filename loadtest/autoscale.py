"""Shows the number of groups following the load: 0 -> 1 -> 2 -> 1 -> 0, all of it real.

Starts ``moe-serving up`` (pocket-r1 on CPU, Ray Serve with its dashboard) in a state folder of its
own and a Prometheus that scrapes the router, runs the autoscaler in this process, sends chats that
rise and fall, and prints every change and every tenth look. The law's times are shortened: windows
of seconds, not minutes. Needs .ci/tools for Prometheus. ``make autoscale-demo``
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from serving.autoscaler.app import assembled
from serving.autoscaler.decision import Action
from serving.autoscaler.explain import HEADER, row
from serving.autoscaler.loop import Turn
from serving.cli.local.state import STATE_DIR_VARIABLE, StateFile
from serving.cli.ops.autoscaler import with_local_run
from serving.flag_parser import FlagParser
from serving.flag_values import AMOUNT
from serving.settings import Settings, load_settings
from serving.telemetry.logs import configure_logs

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / ".tools" / "prometheus" / "prometheus"
GROUP_CPUS = 4
"""Ray CPUs of a group of 2 ranks: 2 each."""
REQUEST_TIMEOUT = 240.0
PHASE_TIMEOUT = 200.0


@dataclass(slots=True)
class Run:
    """What has happened so far."""

    groups: int = 1
    ready: int = 0
    path: list[int] = field(default_factory=list)
    looks: int = 0
    done: int = 0
    lost: list[str] = field(default_factory=list)

    def show(self, turn: Turn) -> None:
        """Note a turn and print it, if it says something new."""
        decision = turn.decision
        self.groups = decision.target
        self.ready = 0 if turn.seen.fleet is None else turn.seen.fleet.ready
        if not self.path or self.path[-1] != decision.target:
            self.path.append(decision.target)
        self.looks += 1
        if decision.action is not Action.HOLD or self.looks % 10 == 0:
            print(row(decision, turn.seen), flush=True)


def law(prometheus: str, tokens_per_second: float) -> Settings:
    """Return the demonstration's law: seconds where the defaults have minutes."""
    values = {
        "min_groups": 0,
        "max_groups": 2,
        "interval": 1.0,
        "prometheus_url": prometheus,
        "window": 8.0,
        "scrape_interval": 1.0,
        "max_age": 5.0,
        "group_tokens_per_second": tokens_per_second,
        # The demonstration is about throughput; two cores say little about latency.
        "ttft_slo": 30.0,
        "itl_slo": 5.0,
        "queue_wait_slo": 30.0,
        "up_window": 4.0,
        "down_window": 12.0,
        "idle_timeout": 10.0,
        "warming_timeout": 180.0,
    }
    return load_settings(flags={"autoscaler": values, "telemetry": {"log_level": "warning"}})


async def chat(client: httpx.AsyncClient, url: str, run: Run) -> None:
    """Send one chat; whatever is not a whole answer counts as lost."""
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": "What is 123 + 456?"}],
        "max_tokens": 64,
        "ignore_eos": True,
        "temperature": 0,
    }
    try:
        answer = await client.post(f"{url}/v1/chat/completions", json=body, timeout=REQUEST_TIMEOUT)
        reason = answer.json()["choices"][0]["finish_reason"]
        if reason not in {"length", "stop"}:
            run.lost.append(f"finished with {reason}")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        run.lost.append(f"{type(error).__name__} {error}")
    run.done += 1


async def stream_of_chats(url: str, run: Run, pause: float) -> None:
    """Send one chat after another until cancelled; the last one is finished all the same."""
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            one = asyncio.create_task(chat(client, url, run))
            try:
                await asyncio.shield(one)
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                await one
                raise


async def phase(name: str, url: str, run: Run, want: int, streams: int, pause: float) -> None:
    """Keep a load up until so many groups are asked for, and ready."""
    print(f"-- {name}: {streams} streams", flush=True)
    tasks = [asyncio.create_task(stream_of_chats(url, run, pause)) for _ in range(streams)]
    try:
        async with asyncio.timeout(PHASE_TIMEOUT):
            while (run.groups, run.ready) != (want, want):  # noqa: ASYNC110  bounded above
                await asyncio.sleep(0.2)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def follow(settings: Settings, url: str) -> Run:
    """Run the autoscaler under a load that rises and falls."""
    run = Run()
    print(HEADER, flush=True)
    async with assembled(settings, dry_run=False) as parts:
        task = asyncio.create_task(parts.autoscaler.run(parts.leading, show=run.show))
        try:
            await phase("nothing to do", url, run, 0, streams=0, pause=0.0)
            await phase("a few requests", url, run, 1, streams=1, pause=1.5)
            await phase("many requests", url, run, 2, streams=8, pause=0.0)
            await phase("a few requests", url, run, 1, streams=1, pause=1.5)
            await phase("nothing to do", url, run, 0, streams=0, pause=0.0)
        finally:
            task.cancel()
            await asyncio.wait([task])
    return run


@contextlib.contextmanager
def prometheus_of(target: str, folder: Path) -> Iterator[str]:
    """Run a Prometheus that scrapes ``target`` every second; yield its URL."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: moe-routers, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    process = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def main() -> int:
    """Run the demonstration; 0 if every number of groups was reached and no request lost."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--tokens-per-second", type=AMOUNT, default=120.0, help="taken for a group's capacity"
    )
    arguments = parser.parse_args()
    if not PROMETHEUS.exists():
        print("error: no Prometheus in .tools: run .ci/tools", file=sys.stderr)
        return 1
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moe-autoscale-") as name:
        folder = Path(name)
        os.environ[STATE_DIR_VARIABLE] = str(folder / "state")
        command = [sys.executable, "-m", "serving"]
        sets = ["ray.dashboard=true", f"ray.dashboard_port={free_port()}"]
        sets.append(f"ray.num_cpus={2 * GROUP_CPUS}")
        flags = [part for item in sets for part in ("--set", item)]
        ports = ["--port", "0", "--grpc-port", "0", "--join-port", "0"]
        try:
            subprocess.run(
                [*command, "up", "--detach", "--no-sample", *ports, *flags], cwd=ROOT, check=True
            )
            state = StateFile(folder / "state").read()
            assert state is not None, "up --detach leaves its state"
            with prometheus_of(state.rest_url.removeprefix("http://"), folder) as url:
                settings = with_local_run(law(url, arguments.tokens_per_second))
                configure_logs(settings.telemetry, process="autoscaler")
                run = asyncio.run(follow(settings, state.rest_url))
        finally:
            subprocess.run([*command, "down"], cwd=ROOT, check=False)
    path = " -> ".join(map(str, run.path))
    print(
        f"groups {path}; {run.done} requests, {len(run.lost)} lost; "
        f"{time.monotonic() - begun:.0f} s in all"
    )
    for reason in run.lost[:5]:
        print(f"lost: {reason}")
    return 0 if not run.lost else 1


if __name__ == "__main__":
    sys.exit(main())
