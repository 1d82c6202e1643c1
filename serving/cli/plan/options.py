"""The flags of ``moe-serving plan``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.flags.paths import ReadableFile
from serving.flags.values import Choice, HttpUrl, Number, Pair, WholeNumber

_LOAD, _HARDWARE, _LAYOUT, _OUTPUT, _MEASURED = (
    "Load and objectives",
    "Hardware",
    "Layout",
    "Output",
    "Calibration",
)
_LENGTH = Pair(
    Number("a length", "tokens", at_least=1, at_most=1e7),
    "a length must be MEAN or MEAN:P90, numbers of tokens from 1 to 10000000 with MEAN <= P90",
    single=True,
    holds=lambda mean, p90: mean <= p90,
)
_SIZE = WholeNumber("a size", at_most=4096, of="GPUs")


def _flag(name: str, reader: Any, metavar: str, panel: str, text: str, shown: str = "") -> Any:
    return typer.Option(
        name,
        parser=reader,
        metavar=metavar,
        help=text,
        show_default=shown or True,
        rich_help_panel=panel,
    )


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="Model of a preset (deepseek-r1, …), or its config.json or directory.",
        rich_help_panel=_LOAD,
    ),
]
RateOption = Annotated[
    Any,
    _flag(
        "--rate",
        Number("a rate", "requests/s", at_least=1e-4, at_most=1e6),
        "N",
        _LOAD,
        "Requests per second in the busiest hour. With --nodes and without --rate: the highest "
        "rate that the nodes serve.",
        "10, or the highest",
    ),
]
PromptOption = Annotated[
    Any,
    _flag("--prompt-tokens", _LENGTH, "MEAN[:P90]", _LOAD, "Length of the prompts, tokens."),
]
OutputLengthOption = Annotated[
    Any,
    _flag("--output-tokens", _LENGTH, "MEAN[:P90]", _LOAD, "Length of the outputs, tokens."),
]
CachedOption = Annotated[
    Any,
    _flag(
        "--cached",
        Number("a share", at_least=0, at_most=0.999),
        "SHARE",
        _LOAD,
        "Share of the prompt tokens that are in the prefix cache.",
    ),
]
TraceOption = Annotated[
    Any,
    _flag(
        "--trace",
        ReadableFile(),
        "FILE",
        _LOAD,
        "Take lengths, cacheable share and mean rate from a trace in the formats of moe-serving "
        "load (Mooncake's, or CSV); --rate takes precedence.",
        "none",
    ),
]
TtftOption = Annotated[
    Any,
    _flag(
        "--ttft",
        Number("an objective", "seconds", above=0, at_most=3600),
        "SECONDS",
        _LOAD,
        "90th percentile of the time to first token.",
    ),
]
ItlOption = Annotated[
    Any,
    _flag(
        "--itl",
        Number("an objective", "seconds", above=0, at_most=60),
        "SECONDS",
        _LOAD,
        "Mean time between a request's tokens, at the load's 90th percentile.",
    ),
]
MostPriceOption = Annotated[
    Any,
    _flag(
        "--max-price",
        Number("a price", "dollars", above=0, at_most=1e9),
        "DOLLARS",
        _LOAD,
        "Maximum cost of all GPUs per million output tokens.",
        "none",
    ),
]
LowOption = Annotated[
    Any,
    _flag(
        "--day-low",
        Number("a share", above=0, at_most=1),
        "SHARE",
        _LOAD,
        "Rate at the quietest time of the day, as a share of the busiest; used for the autoscaled "
        "GPU-hours.",
    ),
]
GpuOption = Annotated[
    str,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="h800, h100, h200, b200, mi300x, cpu, or custom (requires the first three flags "
        "below).",
        rich_help_panel=_HARDWARE,
    ),
]
NodesOption = Annotated[
    Any,
    _flag(
        "--nodes",
        WholeNumber("a number of nodes", at_most=4096),
        "N",
        _HARDWARE,
        "Number of available nodes.",
        "any number",
    ),
]


def _figure(name: str, of: str, text: str) -> Any:
    return _flag(
        name,
        Number("a figure", of, above=0, at_most=1e9),
        "N",
        _HARDWARE,
        text,
        "the GPU's",
    )


MemoryOption = Annotated[Any, _figure("--gpu-memory-gb", "GB", "Memory of a GPU, GB.")]
TflopsOption = Annotated[
    Any,
    _figure(
        "--gpu-tflops", "TFLOP/s", "Peak rate of the model's matrix multiplications, dense TFLOP/s."
    ),
]
BandwidthOption = Annotated[
    Any, _figure("--gpu-bandwidth-gbs", "GB/s", "Memory bandwidth of a GPU, GB/s.")
]
LinkOption = Annotated[
    Any,
    _figure("--gpu-link-gbs", "GB/s", "Bandwidth of a GPU within its node, GB/s in one direction."),
]
NetworkOption = Annotated[
    Any,
    _figure(
        "--gpu-network-gbs", "GB/s", "Bandwidth of a GPU to other nodes, GB/s in one direction."
    ),
]
PerNodeOption = Annotated[
    Any,
    _flag(
        "--gpus-per-node",
        WholeNumber("a number of GPUs", at_most=64),
        "N",
        _HARDWARE,
        "GPUs per node.",
        "the GPU's, 8",
    ),
]
PriceOption = Annotated[
    Any,
    _flag(
        "--gpu-price",
        Number("a price", "dollars", at_least=0, at_most=1e6),
        "DOLLARS",
        _HARDWARE,
        "Price of a GPU-hour.",
        "an assumption, printed",
    ),
]
ModeOption = Annotated[
    Any,
    _flag(
        "--layout",
        Choice(("any", "mixed", "disaggregated")),
        "NAME",
        _LAYOUT,
        "mixed: all groups compute prompts and outputs; disaggregated: prefill and decode groups. "
        "The Helm chart deploys mixed layouts only.",
    ),
]
EpOption = Annotated[
    Any,
    _flag("--ep", _SIZE, "GPUS", _LAYOUT, "Size of a group (mixed or decode), GPUs.", "any"),
]
PrefillEpOption = Annotated[
    Any,
    _flag("--prefill-ep", _SIZE, "GPUS", _LAYOUT, "Size of a prefill group, GPUs.", "any"),
]
TpOption = Annotated[
    Any,
    _flag(
        "--tp",
        WholeNumber("a size", at_most=64, of="GPUs"),
        "GPUS",
        _LAYOUT,
        "Size of a rank, GPUs.",
        "any",
    ),
]
SpeculativeOption = Annotated[
    Any,
    _flag(
        "--speculative",
        Choice(("auto", "none", "mtp")),
        "NAME",
        _LAYOUT,
        "Multi-token prediction with one drafted token; auto tries both.",
    ),
]
AcceptanceOption = Annotated[
    Any,
    _flag(
        "--acceptance",
        Number("a share", at_least=0, at_most=1),
        "SHARE",
        _LAYOUT,
        "Share of the drafted tokens that are accepted.",
    ),
]
LengthOption = Annotated[
    Any,
    _flag(
        "--max-model-len",
        WholeNumber("a length", at_most=10**7, of="tokens"),
        "TOKENS",
        _LAYOUT,
        "Maximum sequence length that must fit, tokens.",
    ),
]
OutputOption = Annotated[
    Any,
    _flag("--output", Choice(("text", "json")), "FORMAT", _OUTPUT, "Output format: text or json."),
]
TopOption = Annotated[
    Any,
    _flag("--top", WholeNumber("a number", at_most=100), "N", _OUTPUT, "Number of plans to print."),
]
ValuesOption = Annotated[
    Path | None,
    typer.Option(
        "--values",
        metavar="FILE",
        help="Write values of the Helm chart for the best mixed plan.",
        rich_help_panel=_OUTPUT,
    ),
]
ErrorsOption = Annotated[
    bool,
    typer.Option(
        "--errors",
        help="Print the performance model's errors on published measurements instead of a plan.",
        rich_help_panel=_OUTPUT,
    ),
]
CalibrateOption = Annotated[
    Any,
    _flag(
        "--calibrate",
        HttpUrl(),
        "URL",
        _MEASURED,
        "Put load on this deployment of the model for about six times --seconds, fit the "
        "constants to the result, and print the error.",
        "none",
    ),
]
CalibrationOption = Annotated[
    Any,
    _flag(
        "--calibration",
        ReadableFile(),
        "FILE",
        _MEASURED,
        "Use a calibration written by --save-calibration.",
        "none",
    ),
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save-calibration",
        metavar="FILE",
        help="Write the result of --calibrate.",
        rich_help_panel=_MEASURED,
    ),
]
SecondsOption = Annotated[
    Any,
    _flag(
        "--seconds",
        Number("a duration", "seconds", at_least=1, at_most=3600),
        "SECONDS",
        _MEASURED,
        "Duration of each load of --calibrate.",
    ),
]
