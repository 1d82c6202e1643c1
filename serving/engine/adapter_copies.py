"""The files of LoRA adapters on a rank: checks, and private copies from which the engine loads."""

import asyncio
import contextlib
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from serving.errors import SettingsError
from serving.link.adapter_files import (
    AdapterBase,
    AdapterError,
    check_adapter,
    copy_adapter,
    folder_inside,
)
from serving.link.protocol import adapter_key
from serving.link.v1 import link_pb2
from serving.settings import ModelSettings
from serving.temporary import temporary_folder


@dataclass(frozen=True, slots=True)
class HeldAdapter:
    """An adapter as an engine loads it."""

    key: str
    number: int
    """Number of the adapter in the engine, at least 1; never used again."""
    folder: Path
    """Private copy of the files."""


class AdapterCopies:
    """Private copies of adapters' files; they exist until they are deleted or closed."""

    def __init__(self, model: ModelSettings) -> None:
        """Start without copies.

        Args:
            model: The model, with its adapters and their limits.
        """
        self._model = model
        self._base = AdapterBase.of(model)
        self._paths = {adapter.name: Path(adapter.path) for adapter in model.adapters}
        self._numbers = itertools.count(1)
        self._undo = contextlib.ExitStack()
        self._folder: Path | None = None

    def check(self) -> None:
        """Check the adapters of the settings. Blocks: reads their files.

        Raises:
            SettingsError: An adapter cannot run on the model; the message names its place.
        """
        for index, adapter in enumerate(self._model.adapters):
            try:
                check_adapter(Path(adapter.path), self._base)
            except AdapterError as error:
                raise SettingsError(f"model.adapters[{index}] ({adapter.name}): {error}") from error

    async def make(self, adapter: link_pb2.Adapter) -> HeldAdapter:
        """Copy an adapter's files and check the copy.

        Raises:
            AdapterError: The files cannot be read, cannot run on the model, or differ from the
                router's.
        """
        if self._folder is None:
            self._folder = await asyncio.to_thread(
                self._undo.enter_context, temporary_folder("moe-serving-adapters-")
            )
        number = next(self._numbers)
        key = adapter_key(adapter.name, adapter.digest)
        held = HeldAdapter(key, number, self._folder / str(number))
        try:
            await asyncio.to_thread(self._copy, adapter, held.folder)
        except BaseException:
            await self.delete(held)
            raise
        return held

    async def delete(self, held: HeldAdapter) -> None:
        """Delete a copy."""
        await asyncio.to_thread(shutil.rmtree, held.folder, ignore_errors=True)

    async def close(self) -> None:
        """Delete all copies. Safe to call twice."""
        self._folder = None
        await asyncio.to_thread(self._undo.close)

    def _copy(self, adapter: link_pb2.Adapter, target: Path) -> None:
        copy_adapter(self._find(adapter), target)
        digest = check_adapter(target, self._base).digest
        if digest != adapter.digest:
            raise AdapterError(
                f"its files have the digest {digest!r} on this rank and {adapter.digest!r} on the "
                "router: use the same files on both"
            )

    def _find(self, adapter: link_pb2.Adapter) -> Path:
        """Return the folder of an adapter's files."""
        if not adapter.folder:
            if adapter.name not in self._paths:
                raise AdapterError(
                    "it is not in the settings of this rank: add it to the model's adapters"
                )
            return self._paths[adapter.name]
        root = self._model.lora.folder
        if root is None:
            raise AdapterError("lora.folder of the model is not set on this rank")
        return Path(root) / folder_inside(root, adapter.folder)
