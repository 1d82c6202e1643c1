"""What the model knows of a group: how long its steps and its start take, what it holds."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from serving.errors import InvalidRequest

FOLDER = Path(__file__).resolve().parent / "calibrations"


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one engine step, as a line through what its busiest rank does.

    All ranks of an expert-parallel group step together, so the busiest one counts.
    """

    base: float
    """Of any step."""
    per_sequence: float
    """For each sequence that gets a token."""
    per_prompt_token: float
    """For each prompt token that is computed."""

    def seconds(self, sequences: int, prompt_tokens: int) -> float:
        """Return how long a step takes."""
        return self.base + self.per_sequence * sequences + self.per_prompt_token * prompt_tokens


@dataclass(frozen=True, slots=True)
class Calibration:
    """One kind of group on one kind of machine."""

    name: str
    source: str
    """Where the figures come from: what was measured when, or what is assumed and why."""
    measured: bool
    """False: assumed from published figures, not run here."""
    step: StepTime
    ranks: int
    """Of a group (the gang): all or none."""
    gpus: float
    """Of a group, for GPU-hours."""
    kv_tokens: int
    """Tokens that the KV cache of one rank holds."""
    kv_block: int
    """Tokens of a block of the prefix cache."""
    prefix_caching: bool
    max_num_seqs: int
    """Most sequences in a step of one rank."""
    max_model_len: int
    batch_tokens: int
    """Most tokens in a step of one rank."""
    chunked_prefill: bool
    """Whether a prompt may be computed in pieces."""
    startup: float
    """Seconds from asking for a group to its last rank joined."""
    warmup: float
    """Seconds from there to ready: each rank generates a token first."""
    overhead: float
    """Seconds that client and router add to the first token."""
    overhead_per_request: float = 0.0
    """The same for each other request in flight, per group: where all share the same cores."""
    residual: float = 0.0
    """Of the fit of steps: root mean square error over the mean; 0 where nothing was fitted."""

    def __post_init__(self) -> None:
        """Refuse what no group can be.

        Raises:
            InvalidRequest: a figure is out of range.
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
            raise InvalidRequest(f"calibration {self.name}: the longest sequence does not fit")


def load_calibration(name: str) -> Calibration:
    """Read a calibration: one of those in this package by its name, or any file by its path.

    Raises:
        InvalidRequest: it is not there, or is something else.
    """
    file = FOLDER / f"{name}.json"
    file = file if file.exists() else Path(name)
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        step = StepTime(**content.pop("step"))
        return Calibration(step=step, **content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
        raise InvalidRequest(f"no calibration {name} ({error}); known: {known}") from error


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Write it as JSON.

    Raises:
        OSError: it cannot be written.
    """
    rounded = replace(
        calibration,
        step=StepTime(*(float(f"{value:.4g}") for value in asdict(calibration.step).values())),
    )
    file.write_text(json.dumps(asdict(rounded), indent=1) + "\n", "utf-8")
