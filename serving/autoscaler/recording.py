"""Reads and writes the autoscaler's files: observations as JSON lines, policy state as JSON."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.errors import SettingsError


def format_line(at: float, observation: Observation) -> str:
    """Format one observation as a line of a recording.

    An infinite age is written as null, because JSON cannot represent infinity.

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
    content: dict[str, Any] = {
        "at": at,
        "target": observation.target,
        "fleet": fleet,
        "signals": signals,
    }
    if observation.pool:
        content["pool"] = observation.pool
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
    pool = str(content.get("pool", ""))
    return float(content["at"]), Observation(int(content["target"]), counts, signals, pool)


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


def read_cycles(file: Path) -> Iterator[tuple[float, list[Observation]]]:
    """Yield the time and the observations of each cycle, one observation per pool.

    Raises:
        SettingsError: As for ``read_recording``.
    """
    for at, items in groupby(read_recording(file), key=itemgetter(0)):
        yield at, [observation for _, observation in items]


def save_state(file: Path, state: PolicyState) -> None:
    """Write the part of the state that is kept across restarts: GPU-hours and learned capacity.

    Raises:
        OSError: The file cannot be written.
    """
    _write(file, _kept(state))


def save_states(file: Path, states: Mapping[str, PolicyState]) -> None:
    """Write the states of several pools, by MODEL/POOL.

    Raises:
        OSError: The file cannot be written.
    """
    _write(file, {"pools": {pool: _kept(state) for pool, state in states.items()}})


def _kept(state: PolicyState) -> dict[str, Any]:
    return {
        "capacity": state.capacity,
        "spent_day": state.spent_day,
        "spent": state.spent,
        "spent_at": state.spent_at,
    }


def _write(file: Path, content: Mapping[str, Any]) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(content), "utf-8")
    part.replace(file)


def load_state(file: Path) -> PolicyState:
    """Return the saved state, or the initial state if the file does not exist.

    The next decision also charges the time since the state was saved. The groups were running
    during that time, because nothing else scales them.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        return _state(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return PolicyState()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from error


def load_states(file: Path, pools: Sequence[str]) -> dict[str, PolicyState]:
    """Return the saved state of each pool, or the initial state.

    A file that contains the state of one unnamed pool applies to the first pool, so that the day's
    GPU-hours still count after ``models`` has replaced the short form.

    Args:
        file: The state file.
        pools: Names of all pools, MODEL/POOL.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        saved = content["pools"] if "pools" in content else {pools[0]: content}
        return {pool: _state(saved[pool]) if pool in saved else PolicyState() for pool in pools}
    except FileNotFoundError:
        return {pool: PolicyState() for pool in pools}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from error


def _state(content: Mapping[str, Any]) -> PolicyState:
    return PolicyState(
        capacity=content["capacity"],
        spent_day=int(content["spent_day"]),
        spent=float(content["spent"]),
        spent_at=content["spent_at"],
    )


def _unreadable(file: Path, error: Exception) -> SettingsError:
    return SettingsError(f"cannot read {file}: {error}; delete it to start without state")
