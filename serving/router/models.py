"""The models of a router: the groups and admission of each, and its vLLM handlers while loaded.

Membership, admission and prefix index of every model exist from the start, so that ranks can join
and requests can wait. Tokenizer, chat template and parsers are loaded at the first request for the
model; at most ``router.loaded_models`` are kept.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Self
from uuid import uuid4

import structlog
from starlette.datastructures import State
from vllm.config import VllmConfig
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from serving.admission.api import AdmissionRequest, Bystander
from serving.admission.budgets import Budgets
from serving.admission.controller import AdmissionController, quotas_of
from serving.admission.quotas import LimitsOf
from serving.clock import Clock
from serving.dispatch.dispatcher import Dispatcher
from serving.engine.arguments import router_args, router_vllm_config
from serving.errors import NotReady, Overloaded, ServingError, SettingsError
from serving.fleet.adapter_operations import AdaptedModel, AdapterOperations
from serving.fleet.adapters import AdapterCatalog
from serving.fleet.canary import Canary, first_token_id
from serving.fleet.membership import FleetMembership
from serving.fleet.models import FleetModel, FleetModels, ModelStatus
from serving.ledger.budget import ModelPrice
from serving.ledger.tariff import Tariff
from serving.link.protocol import model_fingerprint
from serving.request_context import current_context
from serving.requests.client import FleetClient, RouterShare, refusals
from serving.requests.poison import PoisonTracker
from serving.requests.request import FleetRequest
from serving.routing.prefix_index import PrefixIndex
from serving.routing.snapshot import FleetSnapshot
from serving.settings import BatchSettings, ServedModel, Settings, served_models
from serving.telemetry.model_counters import ModelCounters
from serving.vllm_adapter.app import build_model_state
from serving.vllm_adapter.model_dispatch import Handlers, ListedModel, name_adapters, name_models

_CLOSE_AFTER = 60.0
"""Time between dropping a model and stopping its tokenizer's threads, seconds; requests that were
being tokenized have ended by then."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")


@dataclass(frozen=True, slots=True)
class RouterModel:
    """The parts of one model that exist whether or not the model is loaded."""

    served: ServedModel
    config: VllmConfig
    canary: Canary
    membership: FleetMembership
    admission: AdmissionController
    poison: PoisonTracker
    counters: ModelCounters
    adapters: AdapterCatalog


@dataclass(slots=True)
class _Loaded:
    handlers: Handlers
    client: FleetClient


class RouterModels:
    """All models of one router. Not thread-safe: all calls come from one event loop."""

    def __init__(
        self, settings: Settings, models: Sequence[RouterModel], fleet: FleetModels, clock: Clock
    ) -> None:
        """Create the router's view of ``models``, and the client of the first one."""
        self._clock = clock
        self._limit = settings.router.loaded_models
        self._models = {model.served.name: model for model in models}
        self._by_name = {name: model for model in models for name in model.served.names}
        self._share = RouterShare(settings, lambda: fleet.ready, len(models))
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        """Loaded models except the first, the least recently used one first."""
        self._load_turn = asyncio.Lock()
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}
        self._dropped: dict[FleetClient, asyncio.TimerHandle] = {}
        self._explains_all = False
        self.fleet = fleet
        self.first = models[0]
        self.client = self._client(self.first)
        """Client of the first model."""
        self.first_handlers: Handlers = None
        """Handlers of the first model, once the app is built."""
        self.adapters = AdapterOperations(
            {
                name: AdaptedModel(each.adapters, each.membership)
                for name, each in self._models.items()
            },
            self._by_name.__contains__,
        )
        """LoRA adapters of all models."""
        for model in models:
            model.adapters.subscribe(partial(self._name_adapters, model))
            self._name_adapters(model)

    @classmethod
    def of(
        cls,
        settings: Settings,
        clock: Clock,
        limits_of: LimitsOf,
        undo: AsyncExitStack,
        tariff: Tariff | None = None,
        budgets: Budgets | None = None,
    ) -> Self:
        """Build membership and admission of all models in the settings.

        Args:
            settings: All settings.
            clock: The router's clock.
            limits_of: Returns a tenant's limits.
            undo: Receives a clean-up for each part.
            tariff: Prices of the models; needed with budgets.
            budgets: Reserves from budgets, over all models; closed by the caller. None means no
                budgets.

        Raises:
            SettingsError: vLLM rejects the arguments or the files of a model, or an adapter does
                not fit; the message names the position in the settings.
        """
        quotas = quotas_of(settings.admission, limits_of, clock)
        router_id = uuid4().hex[:8]
        models = []
        for served in served_models(settings):
            config = _config(served)
            adapters = AdapterCatalog(served.settings.model, served.place)
            canary = Canary(
                token_id=first_token_id(config.model_config.hf_text_config),
                timeout=settings.fleet.canary_timeout,
            )
            undo.callback(canary.stop)
            routing = settings.routing
            membership = FleetMembership(
                settings.fleet,
                clock,
                router_id,
                prefixes=PrefixIndex(routing.prefix_blocks, routing.history_blocks),
                canary=canary,
            )
            counters = ModelCounters(pool.name for pool in served.pools)
            admission = AdmissionController(
                settings.admission,
                Dispatcher(membership, routing, clock),
                clock=clock,
                limits_of=limits_of,
                quotas=quotas,
                budgets=budgets,
                prices=None if tariff is None else ModelPrice(tariff, served.name),
                waits=counters.wait,
            )
            undo.push_async_callback(admission.stop)
            poison = PoisonTracker(_ready_groups(membership))
            membership.subscribe(poison.wake)
            models.append(
                RouterModel(
                    served, config, canary, membership, admission, poison, counters, adapters
                )
            )
        fleet = FleetModels(
            [
                FleetModel(
                    model.served.name,
                    model.membership,
                    _fingerprint(model.served.settings.model.path),
                    tuple(pool.name for pool in model.served.pools),
                )
                for model in models
            ]
        )
        built = cls(settings, models, fleet, clock)
        undo.push_async_callback(built.stop)
        return built

    @property
    def several(self) -> bool:
        """Whether there is more than one model."""
        return len(self._models) > 1

    # -- vllm_adapter.model_dispatch.ModelStates ------------------------------------------

    def loaded(self, name: str | None) -> Handlers | None:
        """Return the handlers of a model for the current request; None if it is not loaded."""
        model = self._by_name.get(name or "", self.first)
        current_context().record.model = model.served.name
        if model is self.first:
            return self.first_handlers
        found = self._loaded.get(model.served.name)
        if found is None:
            return None
        self._loaded.move_to_end(model.served.name)
        return found.handlers

    async def load(self, name: str) -> Handlers:
        """Load a model and return its handlers; concurrent calls for one model load it once.

        Raises:
            NotReady: The model cannot be loaded.
        """
        model = self._by_name[name]
        key = model.served.name
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(model))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        try:
            # A client that disconnects must not fail the others.
            loaded = await asyncio.shield(task)
        except Exception as error:
            log.exception("cannot load model", model=key)
            raise NotReady(
                f"model {key!r} cannot be loaded ({type(error).__name__}); see the router's log"
            ) from error
        return loaded.handlers

    def listed(self) -> Sequence[ListedModel]:
        """Return all models in the order of the settings."""
        return [
            ListedModel(
                model.served.names,
                model.served.settings.model.path,
                model.config.model_config.max_model_len,
                _names_and_paths(model),
            )
            for model in self._models.values()
        ]

    # -- adapters -------------------------------------------------------------------------

    def use_first(self, handlers: Handlers) -> None:
        """Take over the handlers of the first model, when the app is built."""
        self.first_handlers = handlers
        self._name_adapters(self.first)

    def _name_adapters(self, model: RouterModel) -> None:
        """Let requests name the model's adapters, after a change of the catalog."""
        own = model.served.names
        for name in [
            name for name, owner in self._by_name.items() if owner is model and name not in own
        ]:
            del self._by_name[name]
        self._by_name |= dict.fromkeys((adapter.name for adapter in model.adapters), model)
        loaded = self._loaded.get(model.served.name)
        handlers = self.first_handlers if model is self.first else loaded and loaded.handlers
        if handlers is not None:
            name_adapters(handlers, _names_and_paths(model))
        if self.first_handlers is not None:
            name_models(self.first_handlers, self.listed())

    # -- router ---------------------------------------------------------------------------

    def check_load(self) -> None:
        """Reject the current request before its body is read if no model would accept it.

        Used with several models; with one model, ``FleetClient.check_load`` is called instead.
        ``FleetClient.check_admission`` checks the request's own model later.

        Raises:
            Overloaded: The router or the queue of every model is full, or the tenant's quota is
                exhausted.
            NotReady: The router is shutting down.
        """
        context = current_context()
        refused: Overloaded | None = None
        with refusals():
            self._share.check(0)
            for model in self._models.values():
                try:
                    model.admission.check(context)
                except Overloaded as error:
                    refused = error
                else:
                    return
            assert refused is not None
            raise refused

    def status(self) -> tuple[ModelStatus, ...]:
        """Return names, pools and queue of each model, in the order of the settings."""
        return tuple(
            ModelStatus(
                name=name,
                aliases=model.served.aliases,
                pools=tuple(pool.name for pool in model.served.pools),
                loaded=model is self.first or name in self._loaded,
                queued_requests=model.admission.queue_length,
                queued_tokens=model.admission.queued_tokens,
                ready=model.membership.ready,
                adapters=tuple(self.adapters.adapters(name)),
            )
            for name, model in self._models.items()
        )

    def counters(self) -> Mapping[str, ModelCounters]:
        """Return the counters of each model, by model name."""
        return {name: model.counters for name, model in self._models.items()}

    def requests(self) -> Iterator[FleetRequest]:
        """Return the requests of all models that have been validated and have not ended."""
        return chain.from_iterable(client.requests() for client in self._clients())

    def positions(self, most: int) -> dict[AdmissionRequest, int]:
        """Return ``AdmissionController.positions`` of all models; each model has a queue."""
        found: dict[AdmissionRequest, int] = {}
        for model in self._models.values():
            found |= model.admission.positions(most)
        return found

    def explain_all(self, *, on: bool) -> None:
        """Keep the scores of all routing decisions from now on, or only the requested ones."""
        self._explains_all = on
        for client in self._clients():
            client.explain_all(on=on)

    def batch_inputs(self) -> dict[str, tuple[Callable[[], FleetSnapshot], BatchSettings]]:
        """Return, by model, a function that returns its groups, and its settings of batches."""
        return {
            name: (model.membership.snapshot, model.served.settings.batch)
            for name, model in self._models.items()
        }

    def run_beside(self, bystanders: Mapping[str, Bystander]) -> None:
        """Make lower-priority work yield to requests of the same model.

        Args:
            bystanders: The work that yields, by model.
        """
        for name, model in self._models.items():
            model.admission.bystander = bystanders[name]

    def close_admission(self) -> None:
        """Reject new requests, and fail queued ones with NotReady. Safe to call twice."""
        for model in self._models.values():
            model.admission.close()

    async def stop(self) -> None:
        """Stop loading models, and stop the threads of all clients."""
        for task in tuple(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for timer in self._dropped.values():
            timer.cancel()
        for client in self._clients():
            client.shutdown()

    def _clients(self) -> Iterator[FleetClient]:
        yield self.client
        yield from (loaded.client for loaded in self._loaded.values())
        yield from self._dropped

    # -- loading --------------------------------------------------------------------------

    async def _load(self, model: RouterModel) -> _Loaded:
        # One at a time, because loading holds the interpreter for part of its time.
        async with self._load_turn:
            began = self._clock.monotonic()
            built = await asyncio.to_thread(self._build, model)
        built.client.explain_all(on=self._explains_all)
        self._loaded[model.served.name] = built
        name_adapters(built.handlers, _names_and_paths(model))
        log.info("model loaded", model=model.served.name, seconds=self._clock.monotonic() - began)
        self._drop_least_used()
        return built

    def _build(self, model: RouterModel) -> _Loaded:
        """Read the tokenizer and build the handlers; can take several seconds."""
        client = self._client(model)
        try:
            state = State()
            args = router_args(model.served.settings)
            # Use a separate event loop in this thread: vLLM's function is a coroutine that never
            # waits and starts no task, so it would block the router's loop.
            asyncio.run(build_model_state(client, state, args, client.turns))
        except BaseException:
            client.shutdown()
            raise
        return _Loaded(state, client)

    def _drop_least_used(self) -> None:
        """Drop idle models until at most ``router.loaded_models`` are loaded."""
        newest = next(reversed(self._loaded))
        for name, loaded in tuple(self._loaded.items()):
            if len(self._loaded) + 1 <= self._limit:
                return
            if name == newest or loaded.client.inflight_requests:
                continue
            del self._loaded[name]
            log.info("model dropped", model=name, loaded_models=self._limit)
            loop = asyncio.get_running_loop()
            self._dropped[loaded.client] = loop.call_later(_CLOSE_AFTER, self._close, loaded.client)

    def _close(self, client: FleetClient) -> None:
        del self._dropped[client]
        client.shutdown()

    def _client(self, model: RouterModel) -> FleetClient:
        return FleetClient(
            model.config,
            model.membership,
            model.admission,
            model.served.settings,
            self._clock,
            share=self._share,
            poison=model.poison,
            pools=model.counters.pools,
            adapters=model.adapters,
        )


def _names_and_paths(model: RouterModel) -> tuple[tuple[str, str], ...]:
    return tuple((adapter.name, adapter.path) for adapter in model.adapters)


def _config(served: ServedModel) -> VllmConfig:
    """Return vLLM's configuration of a model.

    Raises:
        SettingsError: vLLM rejects the arguments or the model, or has no such parser.
    """
    _check_parsers(served)
    try:
        return router_vllm_config(served.settings)
    except ServingError as error:
        if served.place == "model":
            raise
        raise SettingsError(f"{served.place}: {error}") from error


def _check_parsers(served: ServedModel) -> None:
    """Check the names of parsers, which vLLM reads only when the model is loaded.

    Raises:
        SettingsError: vLLM has no such parser.
    """
    place = "router" if served.place == "model" else served.place
    router = served.settings.router
    for key, name, known in (
        ("reasoning_parser", router.reasoning_parser, ReasoningParserManager.list_registered()),
        ("tool_parser", router.tool_parser, ToolParserManager.list_registered()),
    ):
        if name is not None and name not in known:
            raise SettingsError(
                f"{place}.{key}: vLLM has no parser {name!r}; it has {', '.join(sorted(known))}"
            )


def _fingerprint(path: str) -> Callable[[], str]:
    return lambda: model_fingerprint(path)


def _ready_groups(membership: FleetMembership) -> Callable[[], int]:
    return lambda: membership.ready_groups
