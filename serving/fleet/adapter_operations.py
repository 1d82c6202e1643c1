"""Operations on LoRA adapters at run time: list, load, unload."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from serving.errors import InvalidRequest, ModelNotFound, NotReady
from serving.fleet.adapters import Adapter, AdapterCatalog
from serving.fleet.membership import FleetMembership
from serving.settings import ADAPTER_NAME

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.operator")

_SHOWN = 40
"""Maximum number of characters of a wrong name in a message."""


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """An adapter, for status pages."""

    name: str
    model: str
    """The base model."""
    path: str
    digest: str
    loaded_at_run_time: bool
    """Otherwise it is in the settings."""
    resident_ranks: int
    """Ranks that have it in memory, or load it."""


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A model and its adapters."""

    catalog: AdapterCatalog
    membership: FleetMembership


class AdapterOperations:
    """Operations on the adapters of one router."""

    def __init__(self, models: Mapping[str, AdaptedModel], knows: Callable[[str], bool]) -> None:
        """Create the operations.

        Args:
            models: The models by name.
            knows: Returns whether a model, an alias or an adapter has a name.
        """
        self._models = models
        self._knows = knows

    def adapters(self, model: str) -> Iterator[AdapterStatus]:
        """Return the adapters of one model."""
        found = self._models[model]
        for adapter in found.catalog:
            yield _status(model, adapter, found.membership)

    def list(self) -> Iterator[AdapterStatus]:
        """Return the adapters of all models."""
        for model in self._models:
            yield from self.adapters(model)

    async def load(
        self, name: str, path: str, model: str | None = None, *, replace: bool = False
    ) -> AdapterStatus:
        """Check an adapter's files, and accept requests for it from now on.

        Args:
            name: Name of the adapter.
            path: Its folder, inside ``lora.folder`` of the model.
            model: The base model. None: the only one with a ``lora.folder``.
            replace: Replace an adapter of the same name; its running requests continue.

        Raises:
            InvalidRequest: The name is invalid or taken, or the adapter cannot run on the model.
            ModelNotFound: There is no such model.
            NotReady: The files could not be read in time.
        """
        if not re.fullmatch(ADAPTER_NAME, name):
            raise InvalidRequest(
                f"the name {name[:_SHOWN]!r} is not allowed: use up to 128 letters, digits, "
                "'.', '_' and '-', beginning with a letter or a digit"
            )
        chosen = self._choose(model)
        catalog = self._models[chosen].catalog
        limit = catalog.load_timeout
        try:
            async with asyncio.timeout(limit):
                adapter = await asyncio.to_thread(catalog.read, name, path)
        except TimeoutError as error:
            raise NotReady(
                f"adapter {name!r}: its files were not read within {limit:g} s (lora.load_timeout)"
            ) from error
        # After the wait: another request may have taken the name.
        if self._knows(name) and catalog.get(name) is None:
            raise InvalidRequest(f"{name!r} is already the name of a model or an adapter")
        catalog.add(adapter, replace=replace)
        log.info("adapter loaded", adapter=name, model=chosen, digest=adapter.digest)
        return _status(chosen, adapter, self._models[chosen].membership)

    def unload(self, name: str) -> None:
        """Reject new requests for an adapter; running ones continue.

        Raises:
            ModelNotFound: There is no such adapter.
        """
        for model, found in self._models.items():
            if found.catalog.get(name) is not None:
                found.catalog.remove(name)
                log.info("adapter unloaded", adapter=name, model=model)
                return
        known = ", ".join(adapter.name for adapter in self.list()) or "none"
        raise ModelNotFound(f"the adapter {name[:_SHOWN]!r} does not exist; adapters: {known}")

    def _choose(self, model: str | None) -> str:
        """Return the name of the base model."""
        if model is not None:
            if model not in self._models:
                known = ", ".join(self._models)
                raise ModelNotFound(
                    f"the model {model[:_SHOWN]!r} does not exist; this router serves {known}"
                )
            return model
        loadable = [name for name, found in self._models.items() if found.catalog.loadable]
        if len(loadable) > 1:
            raise InvalidRequest(
                f"several models take adapters: name one ({', '.join(loadable)}; base_model_name)"
            )
        return loadable[0] if loadable else next(iter(self._models))


def _status(model: str, adapter: Adapter, membership: FleetMembership) -> AdapterStatus:
    return AdapterStatus(
        adapter.name,
        model,
        adapter.path,
        adapter.digest,
        bool(adapter.folder),
        len(membership.adapters.holders(adapter.key)),
    )
