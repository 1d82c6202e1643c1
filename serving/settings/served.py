"""The models that a router serves, whether configured in the short form or as ``models[]``."""

from dataclasses import dataclass

from serving.errors import SettingsError
from serving.settings.load import Settings
from serving.settings.models import ServedModelSettings, app_suffix
from serving.settings.pool_scaling import scaling_of_pool
from serving.settings.ranks import ModelSettings


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of a model."""

    name: str
    settings: Settings
    """All settings in the short form, with the model, the group and the engine of this pool."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model and its pools."""

    name: str
    aliases: tuple[str, ...]
    place: str
    """Where the model is configured, for error messages: ``model`` or ``models[i]``."""
    pools: tuple[Pool, ...]
    """Pools of the model, at least one. Ranks that do not name their pool belong to the first."""

    @property
    def settings(self) -> Settings:
        """All settings in the short form; the router interprets requests with them."""
        return self.pools[0].settings

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases of the model."""
        return (self.name, *self.aliases)


def served_models(settings: Settings) -> tuple[ServedModel, ...]:
    """Return all models, at least one, in the order of the settings."""
    if not settings.models:
        model = settings.model
        pool = Pool(settings.group.pool, settings)
        return (ServedModel(model.name, model.aliases, "model", (pool,)),)
    return tuple(
        _served(settings, model, f"models[{index}]") for index, model in enumerate(settings.models)
    )


def pool_settings(settings: Settings, chosen: str | None = None) -> Settings:
    """Return the settings of one pool, in the short form.

    Args:
        settings: All settings.
        chosen: ``MODEL/POOL``, or ``MODEL`` if the model has one pool. None means the only pool.

    Raises:
        SettingsError: There is no such pool, or there are several; the message lists the names.
    """
    if not settings.models and chosen is None:
        return settings
    pools = {
        f"{model.name}/{pool.name}": (model, pool.settings)
        for model in served_models(settings)
        for pool in model.pools
    }
    found = [
        inner
        for name, (model, inner) in pools.items()
        if chosen in {None, name} or (chosen == model.name and len(model.pools) == 1)
    ]
    if len(found) == 1:
        return found[0]
    what = "several pools are configured" if chosen is None else f"there is no pool {chosen!r}"
    raise SettingsError(f"{what}: choose one of {', '.join(pools)} (--pool)")


def _served(settings: Settings, model: ServedModelSettings, place: str) -> ServedModel:
    own = ModelSettings(
        path=model.path,
        name=model.name,
        aliases=model.aliases,
        adapters=model.adapters,
        lora=model.lora,
    )
    router = settings.router.model_copy(
        update={
            "reasoning_parser": model.reasoning_parser,
            "tool_parser": model.tool_parser,
            "tool_strict_level": model.tool_strict_level,
        }
    )
    batch = settings.batch.model_copy(update=model.batch.model_dump(exclude_none=True))
    pools = tuple(
        Pool(
            pool.name,
            settings.model_copy(
                update={
                    "models": (),
                    "model": own,
                    "group": pool.group.model_copy(update={"pool": pool.name}),
                    "engine": pool.engine,
                    "autoscaler": scaling_of_pool(settings.autoscaler, pool.autoscaler),
                    "router": router,
                    "batch": batch,
                    "ray": settings.ray.model_copy(
                        update={
                            "app_name": f"{settings.ray.app_name}-"
                            f"{app_suffix(model.name, pool.name)}"
                        }
                    ),
                }
            ),
        )
        for pool in model.pools
    )
    return ServedModel(model.name, model.aliases, place, pools)
