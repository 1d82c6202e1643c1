"""Observations as JSON lines, and the policy's state as a JSON file."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.snapshot import FleetCounts, Observation, Reading, Signal
from serving.errors import SettingsError


def line_of(at: float, seen: Observation) -> str:
    """Return one line of a recording: time (seconds since the Unix epoch) and what was seen.

    Ages beyond measure are written as null, as JSON has no infinity.
    """
    signals = {
        str(signal): [
            reading.value,
            reading.age if reading.age != float("inf") else None,
            reading.gap,
        ]
        for signal, reading in seen.signals.items()
    }
    fleet = None if seen.fleet is None else asdict(seen.fleet)
    content = {"at": at, "target": seen.target, "fleet": fleet, "signals": signals}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def parse_line(line: str) -> tuple[float, Observation]:
    """Read what ``line_of`` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is no such line.
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
    """Yield the observations of a recording in their order.

    Raises:
        SettingsError: the file cannot be read; the message names the line.
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
    """Write what outlives a restart: GPU-hours and learnt capacity.

    Raises:
        OSError: it cannot be written.
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
    """Return what was saved, or a new state if there is no such file.

    The time in between is charged with the next decision, as if the groups had run on: they did,
    since nobody scaled them.

    Raises:
        SettingsError: the file cannot be read.
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
        raise SettingsError(f"cannot read {file}: {error}; delete it to begin anew") from error
