"""``moe-serving plan``: ranks the layouts of a model by price."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Self

import yaml

from serving.cli.plan import options
from serving.cli.plan.calibration_file import as_json as calibration_json
from serving.cli.plan.calibration_file import read_calibration
from serving.cli.plan.inputs import (
    hardware,
    model_named,
    preset_model_values,
    workload,
    write_text,
)
from serving.cli.plan.measure import Measured, calibrate, deployment
from serving.cli.plan.report import Answer, as_json, notice, short, show, show_errors
from serving.client.flags import ApiKeyOption
from serving.errors import InvalidRequest
from serving.flags.messages import FlagError
from serving.planner.anchors import MODEL as ANCHORED_MODEL
from serving.planner.chart_values import chart_values, deployable
from serving.planner.constants import ACCEPTANCE, VLLM
from serving.planner.cost import cost_of
from serving.planner.day import day_of
from serving.planner.group import Objective, Role
from serving.planner.plans import Mode, Plan, Question
from serving.planner.search import search
from serving.planner.shapes import Choices, variants

_MODES = {
    "any": (Mode.MIXED, Mode.DISAGGREGATED),
    "mixed": (Mode.MIXED,),
    "disaggregated": (Mode.DISAGGREGATED,),
}
_DRAFTS = {"auto": (0, 1), "none": (0,), "mtp": (1,)}
_DEFAULT_RATE = 10.0
_START_SECONDS = 600.0
"""Start-up time of a new group, seconds: loading 700 GB takes several minutes."""


def plan_command(
    *,
    model: options.ModelOption = "deepseek-r1",
    rate: options.RateOption = None,
    prompt_tokens: options.PromptOption = "2000",
    output_tokens: options.OutputLengthOption = "500",
    cached: options.CachedOption = "0",
    trace: options.TraceOption = None,
    ttft: options.TtftOption = "2",
    itl: options.ItlOption = "0.1",
    max_price: options.MostPriceOption = None,
    day_low: options.LowOption = "0.3",
    gpu: options.GpuOption = "h200",
    nodes: options.NodesOption = None,
    gpu_memory_gb: options.MemoryOption = None,
    gpu_tflops: options.TflopsOption = None,
    gpu_bandwidth_gbs: options.BandwidthOption = None,
    gpu_link_gbs: options.LinkOption = None,
    gpu_network_gbs: options.NetworkOption = None,
    gpus_per_node: options.PerNodeOption = None,
    gpu_price: options.PriceOption = None,
    layout: options.ModeOption = "any",
    ep: options.EpOption = None,
    prefill_ep: options.PrefillEpOption = None,
    tp: options.TpOption = None,
    speculative: options.SpeculativeOption = "auto",
    acceptance: options.AcceptanceOption = str(ACCEPTANCE),
    max_model_len: options.LengthOption = "32768",
    output: options.OutputOption = "text",
    top: options.TopOption = "5",
    values: options.ValuesOption = None,
    errors: options.ErrorsOption = False,
    calibrate_url: options.CalibrateOption = None,
    calibration: options.CalibrationOption = None,
    save_calibration: options.SaveOption = None,
    seconds: options.SecondsOption = "20",
    api_key: ApiKeyOption = None,
) -> int:
    r"""Plan a deployment: rank the layouts of a model on given hardware by price.

    Without any GPU, computes for each layout (sizes of groups and ranks, prefill and decode groups
    or mixed ones) its memory, throughput and latencies, GPU-hours per day, dollars per million
    tokens, and what limits it.

    All figures come from a model that is fitted to published measurements; deploy/docs/planner.md
    documents its formulas and its errors. --calibrate fits it to a running deployment instead.

    The cheapest layouts for 10 requests per second:

    moe-serving plan --model deepseek-r1 --gpu h200 --rate 10

    The highest rate of four nodes, and Helm values for the plan:

    moe-serving plan --gpu h100 --nodes 4 --values values.yaml

    DeepSeek's published layout, 4 nodes for prompts and 18 for outputs:

    moe-serving plan --gpu h800 --nodes 22 --layout disaggregated --ep 144 --prefill-ep 32

    The local run, after measuring it:

      moe-serving plan --model pocket-r1 --gpu cpu --ep 2 --max-model-len 2048 \
          --prompt-tokens 200 --output-tokens 64 --calibrate http://127.0.0.1:8000
    """
    if errors:
        show_errors(model_named(ANCHORED_MODEL)[1])
        return 0
    if calibrate_url and calibration:
        raise FlagError("--calibrate and --calibration are mutually exclusive")
    if save_calibration and not calibrate_url:
        raise FlagError("--save-calibration needs --calibrate")
    name, figures = model_named(model)
    figured: dict[str, float | None] = {
        "memory": gpu_memory_gb,
        "tflops": gpu_tflops,
        "bandwidth": gpu_bandwidth_gbs,
        "link": gpu_link_gbs,
        "network": gpu_network_gbs,
        "per_node": gpus_per_node,
    }
    device = hardware(gpu, figured, gpu_price)
    saturate = rate is None and nodes is not None and trace is None
    chosen = rate if rate is not None or trace is not None else _DEFAULT_RATE
    load = workload(chosen, prompt_tokens, output_tokens, cached, trace)
    if load.prompt + load.output > max_model_len:
        raise InvalidRequest(
            f"prompt and output have {load.prompt + load.output:,.0f} tokens on average, more "
            f"than --max-model-len {max_model_len:,}"
        )
    question = Question(
        model=figures,
        model_name=name,
        gpu=device,
        load=load,
        objective=Objective(ttft, itl, math.inf if max_price is None else max_price),
        known=VLLM,
        choices=Choices(
            max_model_len=max_model_len,
            workers=ep,
            prefill_workers=prefill_ep,
            tensor=tp,
            drafts=(0,) if device.cpu and speculative == "auto" else _DRAFTS[speculative],
            acceptance=acceptance,
        ),
        modes=_MODES[layout],
        nodes=nodes,
        saturate=saturate,
    )
    measured = _calibration(question, calibrate_url, calibration, seconds, api_key)
    if measured is not None:
        question = replace(question, known=measured.found.known)
        if save_calibration is not None:
            write_text(save_calibration, json.dumps(calibration_json(measured), indent=1) + "\n")
    return _answer(question, measured, output=output, top=top, values=values, low=day_low)


def _answer(
    question: Question,
    measured: Measured | None,
    *,
    output: str,
    top: int,
    values: Path | None,
    low: float,
) -> int:
    with _Progress() as progress:
        plans = search(question, progress.sizes)
        shown = plans[:top]
        answers = []
        for number, plan in enumerate(shown, 1):
            progress.say(f"a day of plan {number} of {len(shown)}")
            cost = cost_of(plan, question.load, question.gpu.price)
            day = day_of(plan, question.load, question.objective, low=low, startup=_START_SECONDS)
            answers.append(Answer(plan, cost, day))
    if values is not None:
        _write_values(question, deployable(plans), values, measured)
    if output == "json":
        print(json.dumps(as_json(question, answers, measured), indent=1, allow_nan=False))
    else:
        show(question, answers, measured)
    return 0


def _write_values(question: Question, plan: Plan, file: Path, measured: Measured | None) -> None:
    content = chart_values(question, plan, preset_model_values(question.model_name))
    head = f"# {short(plan)} for {plan.rate:.4g} requests/s, by moe-serving plan.\n"
    head += f"# {notice(measured)}\n"
    write_text(file, head + yaml.safe_dump(content, sort_keys=False))
    print(f"wrote values for {short(plan)} to {file}", file=sys.stderr)


def _calibration(
    question: Question,
    url: str | None,
    file: Path | None,
    seconds: float,
    api_key: str | None,
) -> Measured | None:
    """Return the calibration of ``--calibrate`` or ``--calibration``, or None without either."""
    if file is not None:
        return read_calibration(file)
    if url is None:
        return None
    at = deployment(url, api_key)
    tensor = question.choices.tensor or 1
    choices = replace(question.choices, tensor=tensor, drafts=question.choices.drafts[:1])
    running = next(
        variants(
            question.model, question.gpu, question.known, Role.MIXED, at.ranks * tensor,
            question.load.context, choices,
        ),
        None,
    )  # fmt: skip
    if running is None:
        raise InvalidRequest(
            f"{at.ranks} ranks of {tensor} {question.gpu.name} cannot hold "
            f"{question.model_name}: set --gpu, --tp and --max-model-len of the deployment"
        )
    return calibrate(running.group, at, question.load, seconds=seconds, api_key=api_key)


class _Progress:
    """A progress line on stderr, shown only on terminals."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.say("")

    def sizes(self, done: int, total: int) -> None:
        """Show how many sizes have been evaluated."""
        self.say(f"size {done} of {total}")

    def say(self, text: str) -> None:
        """Replace the line's text."""
        if self._wanted:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
