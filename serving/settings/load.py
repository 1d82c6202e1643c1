"""The settings object of all processes, and how it is read: file < environment < flags."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
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
from serving.settings.link import LinkSettings
from serving.settings.ranks import EngineSettings, GroupSettings, ModelSettings, RaySettings
from serving.settings.router import FleetSettings, RouterSettings
from serving.settings.routing import RoutingSettings
from serving.settings.security import SecuritySettings
from serving.settings.telemetry import TelemetrySettings
from serving.yaml_text import NotYaml, read_yaml

_RESERVED_ENGINE_ARGS = {
    "model",
    "served_model_name",
    "data_parallel_size",
    "data_parallel_rank",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "tensor_parallel_size",
    "enable_expert_parallel",
}
"""Engine arguments that are derived from the settings under model and group."""


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

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        reserved = _RESERVED_ENGINE_ARGS & {key.replace("-", "_") for key in self.engine.args}
        if reserved:
            raise ValueError(
                f"engine.args cannot set {', '.join(sorted(reserved))}: "
                "use the settings under model and group",
            )
        return self

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
        file: YAML file with any of the settings. None: defaults.
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
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingsError("invalid settings: " + "; ".join(lines)) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read settings: {error}") from error
    finally:
        _yaml_file = None
