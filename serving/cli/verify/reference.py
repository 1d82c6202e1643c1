"""Answers that ``verify --save`` stores in a file, for ``verify --against``.

A single process of a large model may not fit on the machine of the deployment that is checked. In
that case, generate its answers once, on a larger machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from serving.errors import SettingsError

_VERSION = 1

SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="FILE", help="Save the answers of the first layout, for --against."
    ),
]
AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="FILE",
        help="Compare with the answers saved in FILE, using its prompts and lengths.",
    ),
]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts and their answers, token by token."""

    model: str
    """Id of the served model."""
    max_tokens: int
    prompts: list[str]
    answers: list[list[int]]
    """Token ids, a list for each prompt."""
    version: int = _VERSION


def save(
    path: Path, model: str, max_tokens: int, prompts: Sequence[str], answers: Sequence[list[int]]
) -> None:
    """Write a reference file.

    Raises:
        SettingsError: The file cannot be written.
    """
    kept = Reference(model, max_tokens, list(prompts), list(answers))
    try:
        path.write_text(json.dumps(msgspec.to_builtins(kept)) + "\n", "utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path, model: str) -> Reference:
    """Return the content of a reference file.

    Raises:
        SettingsError: The file cannot be read, or contains answers of another model than ``model``.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{path} is not a file written by verify --save: {error}") from error
    if found.version != _VERSION:
        raise SettingsError(
            f"{path} has version {found.version}; only version {_VERSION} is supported"
        )
    if found.model != model:
        raise SettingsError(f"{path} contains answers of {found.model}, not {model}")
    if not found.prompts or len(found.prompts) != len(found.answers):
        raise SettingsError(f"{path} does not contain one answer per prompt")
    return found
