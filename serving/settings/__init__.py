"""The settings of all processes, read from a YAML file, the environment and flags.

Each group of settings has a module. Flags take precedence over the environment, and the environment
over the file. A process reads the settings once at start-up; they are validated and frozen.
Environment variables are ``MOE_SERVING_<GROUP>__<FIELD>``, e.g.
``MOE_SERVING_ROUTER__REST_PORT=8080``. Durations are in seconds, sizes in bytes.
deploy/docs/reference/settings.md is generated from the texts below the fields.
"""

from serving.settings.adapters import ADAPTER_NAME, MAX_ADAPTERS, AdapterSettings, LoraSettings
from serving.settings.admission import AdmissionSettings
from serving.settings.autoscaler import AutoscalerSettings, KubernetesSettings, ScheduleFloor
from serving.settings.base import BUNDLED_MODEL, Platform, Port, Seconds, bundled_model
from serving.settings.batch import BatchSettings
from serving.settings.console import ConsoleSettings
from serving.settings.ledger import LedgerSettings
from serving.settings.link import LinkSettings
from serving.settings.load import Settings, load_settings
from serving.settings.models import PoolSettings, ServedModelSettings
from serving.settings.pool_scaling import PoolScalingSettings, gpus_per_group
from serving.settings.ranks import EngineSettings, GroupSettings, ModelSettings, RaySettings
from serving.settings.router import FleetSettings, RouterSettings
from serving.settings.routing import RoutingSettings, RoutingWeights
from serving.settings.security import SecuritySettings
from serving.settings.served import Pool, ServedModel, pool_settings, served_models
from serving.settings.telemetry import TelemetrySettings

__all__ = [
    "ADAPTER_NAME",
    "BUNDLED_MODEL",
    "MAX_ADAPTERS",
    "AdapterSettings",
    "AdmissionSettings",
    "AutoscalerSettings",
    "BatchSettings",
    "ConsoleSettings",
    "EngineSettings",
    "FleetSettings",
    "GroupSettings",
    "KubernetesSettings",
    "LedgerSettings",
    "LinkSettings",
    "LoraSettings",
    "ModelSettings",
    "Platform",
    "Pool",
    "PoolScalingSettings",
    "PoolSettings",
    "Port",
    "RaySettings",
    "RouterSettings",
    "RoutingSettings",
    "RoutingWeights",
    "ScheduleFloor",
    "Seconds",
    "SecuritySettings",
    "ServedModel",
    "ServedModelSettings",
    "Settings",
    "TelemetrySettings",
    "bundled_model",
    "gpus_per_group",
    "load_settings",
    "pool_settings",
    "served_models",
]
