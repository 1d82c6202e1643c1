"""Reads and writes the autoscaler's files: observations as JSON lines, policy state as JSON."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.errors import SettingsError


def format_line(at: float, observation: Observation) -> str:
    """Format one observation as a line of a recording.

    An infinite age is written as null, since JSON has no infinity.

    Args:
        at: Unix time, seconds.
        observation: The observation to record.
    """
    signals = {
        str(signal): [
            reading.value,
            reading.age if reading.age != float("inf") else None,
            reading.gap,
        ]
        for signal, reading in observation.signals.items()
    }
    fleet = None if observation.fleet is None else asdict(observation.fleet)
    content = {"at": at, "target": observation.target, "fleet": fleet, "signals": signals}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def parse_line(line: str) -> tuple[float, Observation]:
    """Parse a line written by ``format_line``.

    Raises:
        ValueError, TypeError, KeyError: The line was not written by ``format_line``.
    """
    content: dict[str, Any] = json.loads(line)
    fleet = content["fleet"]
    signals = {
        Signal(name): Reading(value, float("inf") if age is None else float(age), float(gap))
        for name, (value, age, gap) in content["signals"].items()
    }
    counts = None if fleet is None else FleetCounts(int(fleet["ready"]), int(fleet["parked"]))
    return float(content["at"]), Observation(int(content["target"]), counts, signals)


def read_recording(file: Path) -> Iterator[tuple[float, Observation]]:
    """Yield the time and the observation of each line in a recording.

    Raises:
        SettingsError: The file or a line cannot be read; the message names the line.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield parse_line(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise SettingsError(f"{file}, line {number}: not an observation") from error
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error


def save_state(file: Path, state: PolicyState) -> None:
    """Write the part of the state that is kept across restarts: GPU-hours and learned capacity.

    Raises:
        OSError: The file cannot be written.
    """
    kept = {
        "capacity": state.capacity,
        "spent_day": state.spent_day,
        "spent": state.spent,
        "spent_at": state.spent_at,
    }
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(kept), "utf-8")
    part.replace(file)


def load_state(file: Path) -> PolicyState:
    """Return the saved state, or the initial state if the file does not exist.

    The next decision charges the time since the state was saved as if the groups had kept running,
    which they did, because nothing scaled them meanwhile.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        return PolicyState(
            capacity=content["capacity"],
            spent_day=int(content["spent_day"]),
            spent=float(content["spent"]),
            spent_at=content["spent_at"],
        )
    except FileNotFoundError:
        return PolicyState()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"cannot read {file}: {error}; delete it to start without state"
        ) from error
