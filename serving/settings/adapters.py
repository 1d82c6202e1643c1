"""Settings of the LoRA adapters of a model."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from serving.settings.base import Seconds, SettingsGroup

ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Names of adapters: no slashes, and no dot at the beginning, so that no name is a path."""
MAX_ADAPTERS = 1024
"""Maximum number of adapters of a model, from the settings and loaded at run time."""


class AdapterSettings(SettingsGroup):
    """A LoRA adapter of a model, in PEFT's format."""

    name: str = Field(pattern=ADAPTER_NAME)
    """Model id of the adapter in the API, unique among the names of all models and adapters."""
    path: str = Field(min_length=1)
    """Folder with adapter_config.json and adapter_model.safetensors, the same on routers and
    ranks."""


class LoraSettings(SettingsGroup):
    """How the ranks of a model run LoRA adapters. Ranks run adapters if ``adapters`` is not empty
    or ``folder`` is set.
    """

    slots: int = Field(4, ge=1, le=256)
    """Number of adapters that a rank holds at the same time. Further requests wait until a slot is
    free; the least recently used adapter without requests is removed first."""
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Maximum LoRA rank of an adapter. Ranks reserve memory for it in each slot."""
    folder: str | None = Field(None, min_length=1)
    """Folder that contains the folders of adapters loaded at run time, the same on routers and
    ranks. If null, adapters cannot be loaded at run time."""
    base_names: tuple[str, ...] = Field((), max_length=32)
    """Other names under which the files of adapters may name the base model, in addition to the
    model's name, aliases and path."""
    load_timeout: Seconds = 60.0
    """Time in which a rank must free a slot and load an adapter, seconds; after that, the request
    fails."""


def require_different_names(adapters: Sequence[AdapterSettings]) -> None:
    """Check that the adapters of one model have different names.

    Raises:
        ValueError: Two have the same name; the message begins with the index of the second.
    """
    names: set[str] = set()
    for index, adapter in enumerate(adapters):
        if adapter.name in names:
            raise ValueError(f"[{index}].name: another adapter is named {adapter.name}")
        names.add(adapter.name)
