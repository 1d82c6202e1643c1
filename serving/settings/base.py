"""Base class of the settings groups, common types, and the path of the bundled model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


def bundled_model() -> Path:
    """Return the folder of pocket-r1, in the installed wheel or in this checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "bundled" / "pocket-r1"
    return installed if installed.is_dir() else package.parent / "deploy" / "models" / "pocket-r1"


BUNDLED_MODEL = bundled_model()

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class Platform(StrEnum):
    """Hardware that the ranks run on."""

    CPU = "cpu"
    GPU = "gpu"


class SettingsGroup(BaseModel):
    """Base class of all settings groups: frozen, and rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
