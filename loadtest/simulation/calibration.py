"""Parameters of a simulated group: times of its steps and its start, and its capacity."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from serving.errors import InvalidRequest

FOLDER = Path(__file__).resolve().parent / "calibrations"


@dataclass(frozen=True, slots=True)
class StepTime:
    """Duration of one engine step, linear in the work of the busiest rank.

    All ranks of an expert-parallel group step together, so the busiest one determines the duration.
    """

    base: float
    """Fixed duration of every step, seconds."""
    per_sequence: float
    """Additional seconds for each sequence that gets a token."""
    per_prompt_token: float
    """Additional seconds for each prompt token that is computed."""

    def seconds(self, sequences: int, prompt_tokens: int) -> float:
        """Return the duration of a step, seconds."""
        return self.base + self.per_sequence * sequences + self.per_prompt_token * prompt_tokens


@dataclass(frozen=True, slots=True)
class Calibration:
    """Parameters of one kind of group on one kind of machine."""

    name: str
    source: str
    """Origin of the figures: what was measured and when, or what is assumed and why."""
    measured: bool
    """Whether the figures were measured; False: assumed from published figures."""
    step: StepTime
    ranks: int
    """Number of ranks in a group (the gang)."""
    gpus: float
    """Number of GPUs of a group, for GPU-hours."""
    kv_tokens: int
    """Capacity of one rank's KV cache, tokens."""
    kv_block: int
    """Block size of the prefix cache, tokens."""
    prefix_caching: bool
    max_num_seqs: int
    """Maximum number of sequences in a step of one rank."""
    max_model_len: int
    batch_tokens: int
    """Maximum number of tokens in a step of one rank."""
    chunked_prefill: bool
    """Whether a prompt can be computed in chunks."""
    startup: float
    """Seconds from requesting a group until its last rank has joined."""
    warmup: float
    """Seconds from then until the group is ready: each rank first generates a token."""
    overhead: float
    """Seconds that client and router add to the time to first token."""
    overhead_per_request: float = 0.0
    """Additional seconds for each other request in flight per group, because all processes share
    the same cores."""
    residual: float = 0.0
    """Root mean square error of the step fit divided by the mean; 0 without a fit."""

    def __post_init__(self) -> None:
        """Validate the figures.

        Raises:
            InvalidRequest: A figure is out of range.
        """
        positive = (self.ranks, self.kv_tokens, self.kv_block, self.max_num_seqs, self.batch_tokens)
        never_negative = (
            self.startup,
            self.warmup,
            self.overhead,
            self.overhead_per_request,
            self.gpus,
            self.step.per_sequence,
            self.step.per_prompt_token,
        )
        if min(positive) < 1 or min(never_negative) < 0 or self.step.base <= 0:
            raise InvalidRequest(f"calibration {self.name}: a figure is out of range")
        if self.kv_tokens < self.max_model_len:
            raise InvalidRequest(
                f"calibration {self.name}: the longest sequence does not fit into the KV cache"
            )


def load_calibration(name: str) -> Calibration:
    """Read a bundled calibration by its name, or a calibration file by its path.

    Raises:
        InvalidRequest: The calibration does not exist or is invalid.
    """
    file = FOLDER / f"{name}.json"
    file = file if file.exists() else Path(name)
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        step = StepTime(**content.pop("step"))
        return Calibration(step=step, **content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
        raise InvalidRequest(
            f"cannot load calibration {name} ({error}); bundled calibrations: {known}"
        ) from error


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Write a calibration as JSON.

    Raises:
        OSError: The file cannot be written.
    """
    rounded = replace(
        calibration,
        step=StepTime(*(float(f"{value:.4g}") for value in asdict(calibration.step).values())),
    )
    file.write_text(json.dumps(asdict(rounded), indent=1) + "\n", "utf-8")
