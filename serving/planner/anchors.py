"""Published measurements of DeepSeek-V3 and R1, and the model's prediction for each.

The constants are fitted to the anchors marked ``fitted``, and checked with the others.
The functions of this module are pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.planner.accelerators import ACCELERATORS
from serving.planner.all_to_all import combine_bytes, direct_seconds, dispatch_bytes
from serving.planner.bisection import largest
from serving.planner.constants import PEERS, VLLM, Constants
from serving.planner.gpu_memory import ModelFigures
from serving.planner.roofline import StepModel

MODEL = "deepseek-r1"
"""Name of the model of all anchors, in the presets."""
_DAY = "DeepSeek, open-infra-index, day 6"
_SGLANG = "https://lmsys.org/blog/2025-05-05-large-scale-ep"
_MTP = "https://lmsys.org/blog/2025-07-17-mtp"
_NODE = 8
_TOKENS = 128
"""Number of tokens per GPU in DeepEP's table."""
_BATCH = 256
"""Number of sequences per GPU where a source does not state it: the maximum that DeepEP's README
recommends for its low-latency kernels, which SGLang used."""
_DAY_ITL = 1 / 21
"""Seconds per token of DeepSeek's users: 20 to 22 tokens/s."""
_DAY_CONTEXT = 4989
"""Mean length of the KV cache per output token on DeepSeek's day."""
_DAY_CACHED, _DAY_COMPUTED = 2466, 1914
"""Tokens of a prompt on DeepSeek's day, 56.3 % of them cached. A prompt of 4,380 and an output of
1,210 tokens match its ratio of 608 to 168, and its mean KV length approximately."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A published throughput."""

    name: str
    unit: str
    published: float
    source: str
    fitted: str
    """The constant fitted to this figure; empty if the figure is a check."""
    setup: str
    """Operating point, including assumptions where the source does not state it."""
    predict: Callable[[ModelFigures], float]

    def error(self, model: ModelFigures) -> float:
        """Return the relative error of the prediction for ``model``."""
        return self.predict(model) / self.published - 1


def _decode(
    gpu: str,
    workers: int,
    sequences: int,
    context: int,
    known: Constants,
    *,
    drafts: int = 0,
    accepted: float = 1.0,
    per: int = 1,
) -> Callable[[ModelFigures], float]:
    """Return a function that predicts the output tokens/s of ``per`` decoding GPUs."""

    def predict(model: ModelFigures) -> float:
        group = StepModel(model, ACCELERATORS[gpu], workers, 1, known)
        return per * sequences * accepted / group.decode(sequences, context, drafts).seconds

    return predict


def _prefill(
    gpu: str, workers: int, computed: int, *, cached: int = 0, used: float = 1.0
) -> Callable[[ModelFigures], float]:
    """Return a function that predicts the input tokens/s of a node, including cached ones."""
    tokens = 16_384

    def predict(model: ModelFigures) -> float:
        group = StepModel(model, ACCELERATORS[gpu], workers, 1, PEERS)
        prompts = tokens / computed
        step = group.prefill(tokens, cached + computed / 2, cached * prompts)
        return _NODE * used * (computed + cached) * prompts / step.seconds

    return predict


def _day_decode(model: ModelFigures) -> float:
    """Return the output of a node, in tokens/s, at the speed that DeepSeek's users observed."""
    group = StepModel(model, ACCELERATORS["h800"], 144, 1, PEERS)
    sequences = largest(lambda b: group.decode(b, _DAY_CONTEXT).seconds <= _DAY_ITL, _BATCH)
    return _NODE * sequences / group.decode(sequences, _DAY_CONTEXT).seconds


_IN, _OUT, _GPU = "input tokens/s per node", "output tokens/s per node", "output tokens/s per GPU"

ANCHORS: tuple[Anchor, ...] = (
    Anchor(
        "SGLang, prefill of 2,000 tokens", _IN, 52_300, _SGLANG, "matmul",
        "H100, EP32, 16,384 tokens in a step", _prefill("h100", 32, 2000),
    ),
    Anchor(
        "SGLang, decode", _OUT, 22_282, _SGLANG, "overlap",
        "H100, EP72, 256 sequences per GPU of 2,000 tokens",
        _decode("h100", 72, 256, 2000, PEERS, per=_NODE),
    ),
    Anchor(
        "SGLang, decode of few sequences", _GPU, 60.4, _MTP, "layer_seconds",
        "H200, EP16, 2 sequences per GPU of 65,536 + 2,048 tokens",
        _decode("h200", 16, 2, 67_584, PEERS),
    ),
    Anchor(
        "SGLang, 2 drafted tokens", _GPU, 81.5, _MTP, "draft_seconds",
        "as above, 2.18 tokens per step",
        _decode("h200", 16, 2, 67_584, PEERS, drafts=2, accepted=2.18),
    ),
    Anchor(
        "vLLM, decode", _GPU, 2200, "https://blog.vllm.ai/2025/12/17/large-scale-serving.html",
        "engine", "H200, EP32, prompts and outputs of 2,000 tokens; 256 sequences assumed",
        _decode("h200", 32, _BATCH, 3000, VLLM),
    ),
    Anchor(
        "DeepSeek day 6, prefill", _IN, 73_700, _DAY, "utilisation",
        "H800, EP32, mean of a day, cached tokens included; prompt length assumed",
        _prefill("h800", 32, _DAY_COMPUTED, cached=_DAY_CACHED, used=PEERS.utilisation),
    ),
    Anchor(
        "DeepSeek day 6, decode", _OUT, 14_800, _DAY, "",
        "H800, EP144, 21 tokens/s per user, KV cache of 4,989 tokens", _day_decode,
    ),
    Anchor(
        "DeepSeek profile, prefill", _IN, 62_713, _SGLANG, "",
        "H800, EP32, 4,096 tokens, perfectly balanced experts", _prefill("h800", 32, 4096),
    ),
    Anchor(
        "DeepSeek profile, decode", _OUT, 18_598, _SGLANG, "",
        "H800, EP128, 128 sequences per GPU of 4,096 tokens",
        _decode("h800", 128, 128, 4096, PEERS, per=_NODE),
    ),
    Anchor(
        "SGLang, prefill of 1,000 tokens", _IN, 57_674, _SGLANG, "", "H100, EP32",
        _prefill("h100", 32, 1000),
    ),
    Anchor(
        "SGLang, prefill of 4,000 tokens", _IN, 50_302, _SGLANG, "", "H100, EP32",
        _prefill("h100", 32, 4096),
    ),
    Anchor(
        "SGLang, simulated MTP", _OUT, 17_373, _SGLANG, "",
        "H100, EP72, 128 sequences of 4,000 tokens, 2 tokens per step",
        _decode("h100", 72, 128, 4000, PEERS, drafts=1, accepted=2.0, per=_NODE),
    ),
    Anchor(
        "SGLang, 3 drafted tokens", _GPU, 82.0, _MTP, "", "H200, EP16, 2 sequences, 2.44 per step",
        _decode("h200", 16, 2, 67_584, PEERS, drafts=3, accepted=2.44),
    ),
    Anchor(
        "Ray Serve LLM, decode", _GPU, 2400,
        "https://www.anyscale.com/blog/ray-serve-llm-anyscale-apis-wide-ep-disaggregated-serving-vllm",
        "", "H200, vLLM; size, lengths and batch assumed as for vLLM's figure",
        _decode("h200", 32, _BATCH, 3000, VLLM),
    ),
    Anchor(
        "llm-d 0.5, decode", _GPU, 3100,
        "https://llm-d.ai/blog/llm-d-v0.5-sustaining-performance-at-scale", "",
        "B200, EP16, vLLM, prompts and outputs of 1,000 tokens; 256 sequences assumed",
        _decode("b200", 16, _BATCH, 1500, VLLM),
    ),
)  # fmt: skip
"""All anchors; those to which constants were fitted come first."""

ALL_TO_ALL: tuple[tuple[int, float, float], ...] = (
    (8, 77e-6, 114e-6),
    (16, 118e-6, 195e-6),
    (32, 155e-6, 273e-6),
    (64, 173e-6, 314e-6),
    (128, 192e-6, 369e-6),
    (256, 194e-6, 360e-6),
)
"""DeepEP's low-latency kernels on H800 (docs/legacy.md of its repository): EP size, seconds of
dispatch and of combine, for 128 tokens of 7,168 values to 8 experts."""


def exchanges(model: ModelFigures) -> list[tuple[str, float, float]]:
    """Return name, published and predicted seconds of each exchange in ``ALL_TO_ALL``."""
    sizes = dispatch_bytes(model.hidden_size), combine_bytes(model.hidden_size)
    return [
        (
            f"DeepEP, {what}, EP{workers}",
            published,
            direct_seconds(ACCELERATORS["h800"], workers, _TOKENS, model.num_experts_per_tok, size),
        )
        for workers, *both in ALL_TO_ALL
        for what, published, size in zip(("dispatch", "combine"), both, sizes, strict=True)
    ]
