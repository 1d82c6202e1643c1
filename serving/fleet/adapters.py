"""The LoRA adapters of one model: those of the settings, and those loaded at run time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidRequest, ModelNotFound, SettingsError
from serving.link.adapter_files import AdapterBase, AdapterError, check_adapter, folder_inside
from serving.link.protocol import adapter_key
from serving.settings import MAX_ADAPTERS, ModelSettings


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose files have been checked."""

    name: str
    path: str
    """Its folder, as it was given."""
    digest: str
    folder: str = ""
    """Folder relative to the model's ``lora.folder``; empty: the adapter is in the settings."""

    @property
    def key(self) -> str:
        """Name and digest: identifies the adapter's weights on ranks."""
        return adapter_key(self.name, self.digest)


class AdapterCatalog:
    """Adapters by name. Not thread-safe: all calls come from one event loop."""

    def __init__(self, model: ModelSettings, place: str = "model") -> None:
        """Check the adapters of the settings. Blocks: reads their files.

        Args:
            model: The model, in the short form.
            place: Where the model is configured, for messages.

        Raises:
            SettingsError: An adapter cannot run on the model; the message names its place.
        """
        self._model = model
        self._base = AdapterBase.of(model)
        self._adapters: dict[str, Adapter] = {}
        self._listeners: list[Callable[[], None]] = []
        for index, adapter in enumerate(model.adapters):
            try:
                files = check_adapter(Path(adapter.path), self._base)
            except AdapterError as error:
                raise SettingsError(
                    f"{place}.adapters[{index}] ({adapter.name}): {error}"
                ) from error
            self._adapters[adapter.name] = Adapter(adapter.name, adapter.path, files.digest)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters.values())

    def __len__(self) -> int:
        return len(self._adapters)

    def get(self, name: str) -> Adapter | None:
        """Return an adapter, or None if the model has none of that name."""
        return self._adapters.get(name)

    @property
    def load_timeout(self) -> float:
        """Time to read an adapter's files, seconds."""
        return self._model.lora.load_timeout

    @property
    def loadable(self) -> bool:
        """Whether adapters can be loaded at run time."""
        return self._model.lora.folder is not None

    def read(self, name: str, path: str) -> Adapter:
        """Check an adapter's files, to add it at run time. Blocks; call in a thread.

        Args:
            name: Name of the adapter.
            path: Its folder: absolute, or relative to the model's ``lora.folder``.

        Raises:
            InvalidRequest: The adapter cannot run on the model, or is outside the folder.
        """
        root = self._model.lora.folder
        if root is None:
            raise InvalidRequest(
                f"model {self._model.name!r} takes no adapters at run time: set lora.folder of the "
                "model to the folder that contains them"
            )
        try:
            folder = folder_inside(root, path)
            files = check_adapter(Path(root) / folder, self._base)
        except AdapterError as error:
            raise InvalidRequest(f"adapter {name!r}: {error}") from error
        return Adapter(name, path, files.digest, folder)

    def add(self, adapter: Adapter, *, replace: bool = False) -> None:
        """Add a checked adapter.

        Raises:
            InvalidRequest: The name is taken and ``replace`` is not set, or there are too many.
        """
        if adapter.name in self._adapters and not replace:
            raise InvalidRequest(
                f"adapter {adapter.name!r} is already loaded: unload it, or replace it "
                "(load_inplace)"
            )
        if adapter.name not in self._adapters and len(self._adapters) >= MAX_ADAPTERS:
            raise InvalidRequest(
                f"model {self._model.name!r} has {MAX_ADAPTERS} adapters, the maximum: unload one"
            )
        self._adapters[adapter.name] = adapter
        self._changed()

    def remove(self, name: str) -> None:
        """Remove an adapter; running requests continue.

        Raises:
            ModelNotFound: The model has no such adapter.
        """
        if self._adapters.pop(name, None) is None:
            raise ModelNotFound(f"the adapter {name!r} does not exist")
        self._changed()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()
