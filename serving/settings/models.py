"""Settings of several models behind one router: ``models[]`` with ``pools[]``.

``model``, ``group`` and ``engine`` are the short form of one model with one pool. With ``models``,
``group`` and ``engine`` are the defaults of every pool, and ``router`` has the default parsers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from serving.settings.adapters import (
    MAX_ADAPTERS,
    AdapterSettings,
    LoraSettings,
    require_different_names,
)
from serving.settings.base import Seconds, SettingsGroup
from serving.settings.pool_scaling import PoolScalingSettings
from serving.settings.ranks import (
    POOL_NAME,
    EngineSettings,
    GroupSettings,
    ModelName,
    reserved_engine_args,
)

_PARSERS = ("reasoning_parser", "tool_parser", "tool_strict_level")
"""Settings of a model whose default is the setting of the same name under router."""


class PoolSettings(SettingsGroup):
    """A pool of a model: groups of one shape, on one kind of node."""

    name: str = Field("default", pattern=POOL_NAME)
    """Name of the pool, unique within its model. Metrics, /fleet and the Ray Serve application of
    the pool contain it."""
    role: Literal["mixed"] = "mixed"
    """Kind of work of the pool's groups. mixed: prefill and decode."""
    group: GroupSettings = GroupSettings()
    """Shape and number of the pool's groups. Default of each field: the setting under group."""
    engine: EngineSettings = EngineSettings()
    """Engine of the pool's ranks. Default of each field: the setting under engine; args are
    merged."""
    autoscaler: PoolScalingSettings = PoolScalingSettings()


class ModelBatchSettings(SettingsGroup):
    """Objectives of lines of batches for one model. Null means the setting of the same name in
    batch.
    """

    itl_slo: Seconds | None = None
    """Maximum duration of an engine step with lines alongside other requests, seconds."""
    ttft_slo: Seconds | None = None
    """Target p90 time to first token of the model's other requests, seconds."""


class ServedModelSettings(SettingsGroup):
    """A model, the names under which clients request it, and the pools that run it."""

    name: ModelName
    """Model id in the API, unique among the names and aliases of all models."""
    path: str = Field(min_length=1)
    """Folder with configuration, tokenizer and weights, or the id of a Hugging Face model that is
    already in the local cache."""
    aliases: tuple[ModelName, ...] = Field((), max_length=32)
    """Other names under which clients may request the model."""
    reasoning_parser: str | None = "deepseek_r1"
    """vLLM reasoning parser. If null, reasoning stays in the content. Default:
    router.reasoning_parser."""
    tool_parser: str | None = "deepseek_v3"
    """vLLM tool-call parser for tool_choice auto. If null, that choice is disabled. Default:
    router.tool_parser."""
    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    """How much of a tool call the grammar enforces. Default: router.tool_strict_level."""
    batch: ModelBatchSettings = ModelBatchSettings()
    pools: tuple[PoolSettings, ...] = Field((PoolSettings(),), max_length=32)
    """The pools that run the model, at least one. Ranks that do not name a pool belong to the
    first."""
    adapters: tuple[AdapterSettings, ...] = Field((), max_length=MAX_ADAPTERS)
    """LoRA adapters of the model, each of which clients request by its name."""
    lora: LoraSettings = LoraSettings()

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, adapters: tuple[AdapterSettings, ...]) -> tuple[AdapterSettings, ...]:
        require_different_names(adapters)
        return adapters

    @field_validator("pools")
    @classmethod
    def _check_pools(cls, pools: tuple[PoolSettings, ...]) -> tuple[PoolSettings, ...]:
        if not pools:
            raise ValueError("a model needs at least one pool; omit pools for a default one")
        names: set[str] = set()
        for index, pool in enumerate(pools):
            if pool.name in names:
                raise ValueError(f"[{index}].name: another pool of the model is named {pool.name}")
            names.add(pool.name)
            if reserved := reserved_engine_args(pool.engine):
                raise ValueError(
                    f"[{index}].engine.args: cannot set {reserved}: use the settings of the model "
                    "and of the pool's group"
                )
        return pools


def require_unique_names(models: tuple[ServedModelSettings, ...]) -> None:
    """Check that no two models share a name, an alias, an adapter or a Ray Serve application.

    Raises:
        ValueError: Two models share one of them; the message begins with the index of the second
            model.
    """
    owners: dict[str, int] = {}
    for index, model in enumerate(models):
        for place, name in _names(model):
            if name in owners:
                raise ValueError(
                    f"[{index}].{place}: {name!r} is already a name or alias of "
                    f"models[{owners[name]}]"
                )
            owners[name] = index
    apps: dict[str, str] = {}
    for index, model in enumerate(models):
        for number, pool in enumerate(model.pools):
            app = app_suffix(model.name, pool.name)
            here = f"[{index}].pools[{number}].name"
            if app in apps:
                raise ValueError(
                    f"{here}: the Ray Serve application of the pool would have the same name as "
                    f"that of models{apps[app]}: rename the model or the pool"
                )
            apps[app] = here


def app_suffix(model: str, pool: str) -> str:
    """Return the part of a Ray Serve application's name that identifies the pool."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in f"{model}-{pool}")


def with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw values of all settings, with the defaults of each model and pool filled in.

    Malformed values are returned unchanged; validation then reports where they are.

    Args:
        raw: Values by setting, before validation; nested mappings or settings objects.
    """
    models = raw.get("models")
    if not isinstance(models, list | tuple):
        return dict(raw)
    shared = {name: _given(raw.get(name)) for name in ("router", "group", "engine")}
    return dict(raw) | {"models": [_with_defaults(_given(model), shared) for model in models]}


def _with_defaults(model: Any, shared: Mapping[str, Any]) -> Any:
    if not isinstance(model, dict):
        return model
    router = shared["router"]
    parsers = {
        name: router[name] for name in _PARSERS if isinstance(router, dict) and name in router
    }
    pools = model.get("pools", ({},))
    if isinstance(pools, list | tuple):
        pools = [_pool_with_defaults(_given(pool), shared) for pool in pools]
    return parsers | model | {"pools": pools}


def _pool_with_defaults(pool: Any, shared: Mapping[str, Any]) -> Any:
    if not isinstance(pool, dict):
        return pool
    merged = dict(pool)
    for name in ("group", "engine"):
        default, own = shared[name], _given(pool.get(name, {}))
        if not isinstance(default, dict) or not isinstance(own, dict):
            continue
        merged[name] = default | own
        shared_args, own_args = default.get("args"), own.get("args")
        if isinstance(shared_args, dict) and isinstance(own_args, dict):
            merged[name]["args"] = shared_args | own_args
    return merged


def _given(value: Any) -> Any:
    """Return the values that were set in a settings object; other values are returned as is."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else value


def _names(model: ServedModelSettings) -> Iterator[tuple[str, str]]:
    yield "name", model.name
    for index, alias in enumerate(model.aliases):
        yield f"aliases[{index}]", alias
    for index, adapter in enumerate(model.adapters):
        yield f"adapters[{index}].name", adapter.name
