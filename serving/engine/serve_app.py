"""The Serve application by import path, for deployments by configuration file.

KubeRay's ``serveConfigV2`` and ``serve deploy`` name ``serving.engine.serve_app:build`` and give
the settings as its arguments. ``moe-serving group deploy`` makes the same application itself.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.engine.ray.deployment import application
from serving.errors import SettingsError
from serving.settings import load_settings


class Arguments(BaseModel):
    """What ``args`` of the application's configuration may hold."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    """As in a settings file; environment variables do not win over them."""


def build(arguments: dict[str, Any]) -> Any:
    """Return the groups as a Serve application.

    The number of replicas, and with it of groups, is left to the configuration's own
    ``num_replicas``: it can change there without a restart of what runs, while every change of
    the arguments restarts all replicas.

    Raises:
        SettingsError: the arguments are no settings.
    """
    try:
        checked = Arguments(**arguments)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise SettingsError(f"args of the Serve application: {wrong}") from error
    return application(load_settings(flags=checked.settings))
