"""Answers that ``verify`` keeps in a file, to compare others with later or elsewhere.

A large model's single process may not fit beside the deployment that is to be checked, or not
on the same machine: its answers are made once, where there is room.
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
    typer.Option("--save", metavar="FILE", help="Keep the first layout's answers, for --against."),
]
AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="FILE",
        help="Compare with answers kept by --save; its prompts and lengths are used.",
    ),
]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked, and every token that was answered."""

    model: str
    """Served name."""
    max_tokens: int
    prompts: list[str]
    answers: list[list[int]]
    """Token ids, one list a prompt."""
    version: int = _VERSION


def save(
    path: Path, model: str, max_tokens: int, prompts: Sequence[str], answers: Sequence[list[int]]
) -> None:
    """Write a reference.

    Raises:
        SettingsError: the file cannot be written.
    """
    kept = Reference(model, max_tokens, list(prompts), list(answers))
    try:
        path.write_text(json.dumps(msgspec.to_builtins(kept)) + "\n", "utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path, model: str) -> Reference:
    """Read a reference of ``model``.

    Raises:
        SettingsError: it cannot be read, or is of another model.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{path} is not what verify --save writes: {error}") from error
    if found.version != _VERSION:
        raise SettingsError(f"{path} has version {found.version}, known is {_VERSION}")
    if found.model != model:
        raise SettingsError(f"{path} holds answers of {found.model}, not of {model}")
    if not found.prompts or len(found.prompts) != len(found.answers):
        raise SettingsError(f"{path} does not hold one answer for each prompt")
    return found
