"""Groups that follow the load, on real engines: 0 -> 1 -> 2 -> 1 -> 0.

    python -m loadtest.demos.autoscale

Starts ``moe-serving up`` (pocket-r1 on CPU, Ray Serve with its dashboard) in a temporary state
folder, and a Prometheus that scrapes the router. The autoscaler runs in this process while the
number of chats changes; each change and every tenth decision is printed. Windows last seconds
instead of minutes. Requires .ci/tools for Prometheus.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving.autoscaler.app import autoscaler_app
from serving.autoscaler.decision import HEADER, Action, row
from serving.autoscaler.loop import Cycle
from serving.cli.local.state import STATE_DIR_VARIABLE, StateFile
from serving.cli.ops.autoscaler import with_local_run
from serving.client.aio import AsyncRestClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.errors import ClientError
from serving.flags.parser import FlagParser
from serving.flags.values import AMOUNT
from serving.net import HeldPort
from serving.settings import Settings, load_settings
from serving.telemetry.logs import configure_logs

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / ".tools" / "prometheus" / "prometheus"
GROUP_CPUS = 4
"""Number of Ray CPUs of a group: 2 for each of its 2 ranks."""
PHASE_TIMEOUT = 200.0
REQUEST = GenerateRequest((Message("user", "What is 123 + 456?"),), max_tokens=64)
OPTIONS = GenerateOptions("pocket-r1", temperature=0.0, ignore_eos=True, timeout=240.0)


@dataclass(slots=True)
class Run:
    """Progress and results of the demonstration."""

    groups: int = 1
    ready: int = 0
    path: list[int] = field(default_factory=list)
    looks: int = 0
    done: int = 0
    lost: list[str] = field(default_factory=list)

    def show(self, cycle: Cycle) -> None:
        """Record a cycle; print every change and every tenth cycle."""
        decision = cycle.decision
        self.groups = decision.target
        self.ready = 0 if cycle.observation.fleet is None else cycle.observation.fleet.ready
        if not self.path or self.path[-1] != decision.target:
            self.path.append(decision.target)
        self.looks += 1
        if decision.action is not Action.HOLD or self.looks % 10 == 0:
            print(row(decision, cycle.observation), flush=True)


def demo_settings(prometheus: str, tokens_per_second: float) -> Settings:
    """Return the demonstration's settings: seconds where the defaults have minutes."""
    values = {
        "min_groups": 0,
        "max_groups": 2,
        "interval": 1.0,
        "prometheus_url": prometheus,
        "window": 8.0,
        "scrape_interval": 1.0,
        "max_age": 5.0,
        "group_tokens_per_second": tokens_per_second,
        # Only throughput decides here: latency on two cores varies too much.
        "ttft_slo": 30.0,
        "itl_slo": 5.0,
        "queue_wait_slo": 30.0,
        "up_window": 4.0,
        "down_window": 12.0,
        "idle_timeout": 10.0,
        "warming_timeout": 180.0,
    }
    return load_settings(flags={"autoscaler": values, "telemetry": {"log_level": "warning"}})


async def chat(client: AsyncRestClient, run: Run) -> None:
    """Send one chat; a request without a complete answer counts as lost."""
    try:
        async for _ in client.generate(REQUEST, OPTIONS):
            pass
    except ClientError as error:
        run.lost.append(f"{error.kind}: {error}")
    run.done += 1


async def chats(client: AsyncRestClient, run: Run, pause: float) -> None:
    """Send one chat after another; on cancellation, finish the current chat."""
    while True:
        one = asyncio.create_task(chat(client, run))
        try:
            await asyncio.shield(one)
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            await one
            raise


async def phase(name: str, url: str, run: Run, want: int, streams: int, pause: float) -> None:
    """Apply a load until ``want`` groups are requested and ready.

    Args:
        name: Printed as a heading.
        url: REST address of the router.
        run: Receives the results, and the number of groups from the autoscaler.
        want: Number of groups that ends the phase.
        streams: Concurrent chats.
        pause: Seconds between two chats of a stream.

    Raises:
        TimeoutError: The phase took longer than ``PHASE_TIMEOUT``.
    """
    print(f"-- {name}: {streams} streams", flush=True)
    async with AsyncRestClient(url) as client:
        tasks = [asyncio.create_task(chats(client, run, pause)) for _ in range(streams)]
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
    async with autoscaler_app(settings, dry_run=False) as app:
        task = asyncio.create_task(app.autoscaler.run(app.is_leader, on_cycle=run.show))
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
    held = HeldPort()
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
            f"--web.listen-address=127.0.0.1:{held.port}",
            "--log.level=error",
        ]
    )
    try:
        yield f"http://127.0.0.1:{held.port}"
    finally:
        process.terminate()
        process.wait()
        held.release()


def main() -> int:
    """Run the demonstration; return 0 if no request was lost."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--tokens-per-second",
        type=AMOUNT,
        default=120.0,
        help="capacity of a group, output tokens/s (default: 120)",
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
        dashboard = HeldPort()
        sets = ["ray.dashboard=true", f"ray.dashboard_port={dashboard.port}"]
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
                settings = with_local_run(demo_settings(url, arguments.tokens_per_second))
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
