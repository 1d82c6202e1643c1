"""Passes identical settings to a child process.

The child reads them with ``--config FILE``. Environment variables take precedence over a file and
are already included in the settings, so they are removed from the child's environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from serving.settings import Settings


def write_settings(settings: Settings, path: Path) -> None:
    """Write all settings as YAML, readable by the owner only."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)


def environment_without_settings(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without the variables that carry settings.

    Args:
        environ: Variables to filter; by default those of this process.
    """
    env = os.environ if environ is None else environ
    prefix = str(Settings.model_config["env_prefix"])
    names = {f"{prefix}{field}".upper() for field in Settings.model_fields}
    delimiter = str(Settings.model_config["env_nested_delimiter"])
    return {
        key: value
        for key, value in env.items()
        if key.upper() not in names
        and not any(key.upper().startswith(name + delimiter) for name in names)
    }
