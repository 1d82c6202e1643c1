"""Calibrations as JSON files."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from serving.cli.plan.measure import Compared, Measured
from serving.errors import InvalidRequest
from serving.planner.calibration import Fit, Observed
from serving.planner.constants import Constants

_NAMES = {field.name for field in fields(Constants)}


def as_json(measured: Measured) -> dict[str, Any]:
    """Return a calibration as a JSON object."""
    return {
        "source": measured.source,
        "constants": asdict(measured.found.known),
        "residual": measured.found.residual,
        "loads": measured.found.loads,
        "check": measured.check,
        "compared": [asdict(each) for each in measured.compared],
        "observed": [asdict(each) for each in measured.observed],
    }


def read_calibration(file: Path) -> Measured:
    """Read a calibration written by ``as_json``.

    Raises:
        InvalidRequest: The file cannot be read, or is not a calibration.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        return Measured(
            Fit(
                _constants(content["constants"]), float(content["residual"]), int(content["loads"])
            ),
            str(content["source"]),
            str(content["check"]),
            tuple(Compared(**each) for each in content["compared"]),
            tuple(Observed(**each) for each in content["observed"]),
        )
    except OSError as error:
        raise InvalidRequest(f"cannot read the calibration {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(
            f"{file} is not a calibration from plan --save-calibration: {error}"
        ) from error


def _constants(content: Mapping[str, Any]) -> Constants:
    constants = {name: float(value) for name, value in content.items()}
    if set(constants) != _NAMES:
        raise ValueError(f"its constants must be {', '.join(sorted(_NAMES))}")
    if not all(math.isfinite(value) and value >= 0 for value in constants.values()):
        raise ValueError("its constants must be numbers of at least 0")
    return Constants(**constants)
