"""The settings object of all processes, and the function that reads and validates it."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from serving.errors import SettingsError
from serving.settings.admission import AdmissionSettings
from serving.settings.autoscaler import AutoscalerSettings
from serving.settings.base import Platform
from serving.settings.batch import BatchSettings
from serving.settings.console import ConsoleSettings
from serving.settings.ledger import LedgerSettings
from serving.settings.link import LinkSettings
from serving.settings.models import ServedModelSettings, require_unique_names, with_defaults
from serving.settings.pool_scaling import require_cluster, require_room, scaling_of_pool
from serving.settings.ranks import (
    EngineSettings,
    GroupSettings,
    ModelSettings,
    RaySettings,
    reserved_engine_args,
)
from serving.settings.router import FleetSettings, RouterSettings
from serving.settings.routing import RoutingSettings
from serving.settings.security import SecuritySettings
from serving.settings.telemetry import TelemetrySettings
from serving.yaml_text import NotYaml, read_yaml


class Settings(BaseSettings):
    """All settings, one field per group; frozen once read."""

    model_config = SettingsConfigDict(
        env_prefix="MOE_SERVING_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )

    platform: Platform = Platform.CPU
    """Hardware that the ranks run on."""
    models: tuple[ServedModelSettings, ...] = Field((), max_length=64)
    """Models that the router serves, instead of the one under model. Empty means one model with one
    pool, as described by model, group and engine."""
    model: ModelSettings = ModelSettings()
    group: GroupSettings = GroupSettings()
    engine: EngineSettings = EngineSettings()
    router: RouterSettings = RouterSettings()
    link: LinkSettings = LinkSettings()
    fleet: FleetSettings = FleetSettings()
    admission: AdmissionSettings = AdmissionSettings()
    routing: RoutingSettings = RoutingSettings()
    ray: RaySettings = RaySettings()
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    security: SecuritySettings = SecuritySettings()
    ledger: LedgerSettings = LedgerSettings()
    batch: BatchSettings = BatchSettings()
    console: ConsoleSettings = ConsoleSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        return with_defaults(raw) if isinstance(raw, dict) else raw

    @field_validator("models")
    @classmethod
    def _check_models(
        cls, models: tuple[ServedModelSettings, ...]
    ) -> tuple[ServedModelSettings, ...]:
        require_unique_names(models)
        return models

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if reserved := reserved_engine_args(self.engine):
            raise ValueError(
                f"engine.args cannot set {reserved}: use the settings under model and group",
            )
        if self.models and self.model != ModelSettings():
            raise ValueError("model cannot be combined with models: add it to models")
        self._check_scaling()
        return self

    def _check_scaling(self) -> None:
        """Check the autoscaler's settings of each pool, and that all minimums fit the limits."""
        if not self.models:
            try:
                require_cluster(self.autoscaler)
                require_room(self.autoscaler, [(self.autoscaler, self.group)])
            except ValueError as error:
                raise ValueError(f"autoscaler: {error}") from error
            return
        pools = []
        for index, model in enumerate(self.models):
            for number, pool in enumerate(model.pools):
                try:
                    scaling = scaling_of_pool(self.autoscaler, pool.autoscaler)
                    require_cluster(scaling)
                except ValidationError as error:
                    told = "; ".join(
                        item["msg"].removeprefix("Value error, ") for item in error.errors()
                    )
                    raise ValueError(
                        f"models[{index}].pools[{number}].autoscaler: {told}"
                    ) from error
                except ValueError as error:
                    raise ValueError(
                        f"models[{index}].pools[{number}].autoscaler: {error}"
                    ) from error
                pools.append((scaling, pool.group))
        require_room(self.autoscaler, pools)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in decreasing order of precedence: flags, environment, YAML file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _yaml_source(settings_cls)


_yaml_file: Path | None = None


class _YamlFile(YamlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        content = read_yaml(file_path.read_text("utf-8"))
        if not isinstance(content, dict | None):
            raise NotYaml("expected a mapping of settings to values", 1)
        return {str(name): value for name, value in (content or {}).items()}


def _yaml_source(settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
    return _YamlFile(settings_cls, yaml_file=_yaml_file)


def load_settings(file: Path | None = None, flags: dict[str, Any] | None = None) -> Settings:
    """Read and validate the settings.

    Args:
        file: YAML file with any of the settings. None means all defaults.
        flags: Nested values that take precedence over environment and file.

    Raises:
        SettingsError: The file cannot be read, or a value is invalid; the message names the key of
            each problem.
    """
    global _yaml_file  # noqa: PLW0603  pydantic-settings has no argument for it
    if file is not None and not file.is_file():
        raise SettingsError(f"settings file {file} does not exist")
    _yaml_file = file
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        lines = "; ".join(_line(item["loc"], item["msg"]) for item in error.errors())
        raise SettingsError(f"invalid settings: {lines}") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read settings: {error}") from error
    finally:
        _yaml_file = None


def _line(place: tuple[int | str, ...], message: str) -> str:
    """Return the error line for an invalid value, e.g. ``models[1].pools[0].name: …``."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    # Validators of lists begin their message with the index of the item.
    inner = message.removeprefix("Value error, ")
    if name and inner != message and inner.startswith("["):
        return f"{name[1:]}{inner}"
    return f"{name[1:] or 'settings'}: {message}"
