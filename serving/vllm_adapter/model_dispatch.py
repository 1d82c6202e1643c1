"""Several models in vLLM's app: each request goes to the handlers of the model that it names.

vLLM's routes take their handlers from the app's state, which describes one model. Here, the app's
state belongs to the first model, and its handlers are replaced by ones that forward each request
to the corresponding handler in the state of its model. A request without a model, or for an unknown
one, goes to the first model: for an unknown model, its handler returns 404 in the route's format
and lists all names.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from starlette.datastructures import State
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission
from vllm.lora.request import LoRARequest

from serving.errors import ServingError
from serving.vllm_adapter.error_response import response_of

Handlers = Any
"""An object with an attribute for each key of ``_METHODS``, such as vLLM's app state."""

_METHODS: dict[str, tuple[str, ...]] = {
    "openai_serving_chat": ("create_chat_completion",),
    "openai_serving_chat_batch": ("create_batch_chat_completion",),
    "openai_serving_completion": ("create_completion",),
    "openai_serving_responses": ("create_responses",),
    "anthropic_serving_messages": ("create_messages", "count_tokens"),
    "serving_tokenization": ("create_tokenize", "create_detokenize"),
}
"""Handlers in the app's state, with their methods whose first argument names a model."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in the list of models."""

    names: tuple[str, ...]
    """Name and aliases of the model."""
    path: str
    max_model_len: int
    adapters: tuple[tuple[str, str], ...] = ()
    """Name and path of each LoRA adapter of the model."""


class ModelStates(Protocol):
    """The states of all models; implemented by ``router.models.RouterModels``."""

    def loaded(self, name: str | None) -> Handlers | None:
        """Return the handlers of a model for one request, or None if it is not loaded.

        Args:
            name: Name or alias; a missing or unknown name stands for the first model.
        """
        ...

    async def load(self, name: str) -> Handlers:
        """Load a known model and return its handlers.

        Raises:
            ServingError: The model cannot be loaded.
        """
        ...

    def listed(self) -> Sequence[ListedModel]:
        """Return all models in the order of the settings."""
        ...


def dispatch_models(state: State, states: ModelStates) -> Handlers:
    """Replace the handlers in the app's state.

    Args:
        state: State of the app, which belongs to the first model.
        states: States of all models.

    Returns:
        The handlers of the first model.
    """
    first = SimpleNamespace(**{kind: getattr(state, kind) for kind in _METHODS})
    for kind, methods in _METHODS.items():
        setattr(state, kind, _HandlerByModel(kind, methods, first, states))
    return first


def list_models(state: State, states: ModelStates) -> None:
    """Let the app's list of models contain all names of all models, and their adapters."""
    state.openai_serving_models = _AllModels(state.openai_serving_models, states)


def name_adapters(handlers: Handlers, adapters: Iterable[tuple[str, str]]) -> None:
    """Set the adapters that one model's handlers accept as the name of a model.

    Args:
        handlers: Handlers of the model.
        adapters: Name and path of each.
    """
    found: dict[str, LoRARequest] = {}
    for name, path in adapters:
        # The router sends only the name; vLLM's number and path are not used.
        found[name] = LoRARequest(name, 1, path)
    handlers.openai_serving_chat.models.lora_requests = found


def name_models(first: Handlers, listed: Sequence[ListedModel]) -> None:
    """Set the names that an error about an unknown model lists.

    Args:
        first: Handlers of the first model, which answer requests for unknown models.
        listed: All models.
    """
    # Only the first entry identifies the model.
    first.openai_serving_chat.models.base_model_paths = [
        BaseModelPath(name, model.path)
        for model in listed
        for name in (*model.names, *(name for name, _ in model.adapters))
    ]


class _HandlerByModel:
    """A handler in the app's state that forwards each request to the handler of its model."""

    def __init__(
        self, kind: str, methods: Sequence[str], first: Handlers, states: ModelStates
    ) -> None:
        self._first = getattr(first, kind)
        for name in methods:
            setattr(self, name, functools.partial(_call, kind, name, states))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)


async def _call(
    kind: str, method: str, states: ModelStates, request: Any, *args: Any, **kwargs: Any
) -> Any:
    state = states.loaded(request.model)
    if state is None:
        try:
            state = await states.load(request.model)
        except ServingError as error:
            return response_of(error)
    return await getattr(getattr(state, kind), method)(request, *args, **kwargs)


class _AllModels:
    """The list of models in the app's state."""

    def __init__(self, first: Any, states: ModelStates) -> None:
        self._first = first
        self._states = states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)

    async def show_available_models(self) -> ModelList:
        """Return a card for every name, alias and adapter of every model."""
        return ModelList(
            data=[
                ModelCard(
                    id=name,
                    root=path,
                    parent=parent,
                    max_model_len=model.max_model_len,
                    permission=[ModelPermission()],
                )
                for model in self._states.listed()
                for name, path, parent in (
                    *((name, model.path, None) for name in model.names),
                    *((name, path, model.names[0]) for name, path in model.adapters),
                )
            ]
        )
