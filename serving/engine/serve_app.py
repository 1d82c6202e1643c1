"""Builder of the Serve application, for deployment from a Serve config file.

KubeRay's ``serveConfigV2`` and ``serve deploy`` use the import path
``serving.engine.serve_app:build`` and pass the settings as arguments. ``moe-serving group deploy``
builds the same application without this module.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.engine.ray.deployment import application
from serving.errors import SettingsError
from serving.settings import load_settings, pool_settings


class Arguments(BaseModel):
    """Schema of ``args`` in the Serve config file."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    """Settings in the form of a settings file; they override environment variables."""


def build(arguments: dict[str, Any]) -> Any:
    """Return the groups as a Serve application.

    Set the number of replicas, and thus of groups, with ``num_replicas`` in the config file: Serve
    applies it without restarting running replicas, whereas any change of ``args`` restarts all
    replicas.

    Raises:
        SettingsError: The arguments are not valid settings.
    """
    try:
        checked = Arguments(**arguments)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise SettingsError(f"args of the Serve application: {wrong}") from error
    return application(pool_settings(load_settings(flags=checked.settings)))
