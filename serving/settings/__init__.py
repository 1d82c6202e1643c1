"""The one settings object: YAML file < environment < flags, frozen and validated.

One module per group of settings; a process reads them once at start-up and passes the groups down.
Environment variables are ``MOE_SERVING_<GROUP>__<FIELD>``, e.g.
``MOE_SERVING_ROUTER__REST_PORT=8080``. Durations are in seconds, sizes in bytes.
deploy/docs/reference/settings.md is generated from the texts below the fields.
"""

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
    "BUNDLED_MODEL",
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
