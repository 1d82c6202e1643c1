"""Flags for settings that several commands share, and their conversion to ``Settings``.

A command has the annotated types below as parameters and passes their values to ``settings_from``.
A flag that is not given is None and does not override the environment or the YAML file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from serving.cli.errors import accepted
from serving.errors import SettingsError
from serving.flags.messages import FlagError, refusal
from serving.settings import BUNDLED_MODEL, Settings, load_settings
from serving.yaml_text import NotYaml, read_yaml

_PANEL = "Settings"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file with settings; environment variables and flags take precedence.",
        rich_help_panel=_PANEL,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="Any setting; VALUE is YAML: --set engine.max_num_seqs=16. Repeatable. "
        "vLLM engine arguments: --set engine.args.NAME=VALUE.",
        rich_help_panel=_PANEL,
    ),
]
GroupsOption = Annotated[
    int | None,
    typer.Option(
        "--groups", help="Number of groups (group.count; default: 1).", rich_help_panel=_PANEL
    ),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        help="Number of expert-parallel ranks in a group (group.data_parallel; default: 2).",
        rich_help_panel=_PANEL,
    ),
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port", help="REST port (router.rest_port; default: 8000).", rich_help_panel=_PANEL
    ),
]
GrpcPortOption = Annotated[
    int | None,
    typer.Option(
        "--grpc-port", help="gRPC port (router.grpc_port; default: 50051).", rich_help_panel=_PANEL
    ),
]
JoinPortOption = Annotated[
    int | None,
    typer.Option(
        "--join-port",
        help="Port that ranks connect to (router.join_port, and link.routers of this machine; "
        "default: 50052).",
        rich_help_panel=_PANEL,
    ),
]
SpeculativeOption = Annotated[
    str | None,
    typer.Option(
        "--speculative",
        metavar="none|mtp",
        help="Speculative decoding; mtp drafts with the multi-token-prediction layer "
        "(engine.speculative; default: none).",
        rich_help_panel=_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="Model directory (model.path; default: the bundled pocket-r1).",
        rich_help_panel=_PANEL,
    ),
]

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[NAME=]PATH",
        help="Model directory, or the name of a bundled model (model.path; default: the bundled "
        "pocket-r1). Repeat it to serve several models (models[]); NAME is the model id in the "
        "API, by default the directory's name.",
        rich_help_panel=_PANEL,
    ),
]

PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool",
        metavar="MODEL[/POOL]",
        help="Pool of models[] that the command applies to; optional if there is only one pool.",
        rich_help_panel=_PANEL,
    ),
]

InsecureOption = Annotated[
    bool | None,
    typer.Option(
        "--insecure",
        help="Allow non-loopback addresses without API keys, join token or TLS "
        "(security.insecure).",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]

_SHORTCUTS: dict[str, str] = {
    "groups": "group.count",
    "ranks": "group.data_parallel",
    "port": "router.rest_port",
    "grpc_port": "router.grpc_port",
    "join_port": "router.join_port",
    "speculative": "engine.speculative",
    "model": "model.path",
    "insecure": "security.insecure",
}


def settings_from(
    config: Path | None = None,
    sets: list[str] | None = None,
    *,
    models: list[str] | None = None,
    **shortcuts: Any,
) -> Settings:
    """Return the settings of a command line.

    Args:
        config: YAML file of ``--config``.
        sets: ``NAME=VALUE`` strings of ``--set``; the value is YAML.
        models: ``[NAME=]PATH`` strings of ``--model``.
        shortcuts: Values of the named flags (groups, ranks, port, grpc_port, join_port,
            speculative, model, insecure). None if the flag was not given.

    Raises:
        FlagError: A named flag has a value that its setting does not accept.
        SettingsError: A setting is invalid; the one-line message contains its name and the reason.
    """
    flags: dict[str, Any] = {}
    for name, value in shortcuts.items():
        if value is not None:
            _put(flags, _SHORTCUTS[name], value)
    if models:
        _put_models(flags, models)
    join_port = shortcuts.get("join_port")
    if join_port is not None:
        # Local ranks connect to the local router, unless --set names others.
        _put(flags, "link.routers", [f"127.0.0.1:{join_port}"])
    for item in sets or ():
        name, value = _parse(item)
        _put(flags, name, value)
    try:
        return load_settings(config, flags)
    except SettingsError as error:
        found = _of_a_flag(error, shortcuts)
        if found is None:
            raise
        raise found from error


def _put_models(flags: dict[str, Any], texts: list[str]) -> None:
    """Set one model in the short form, several as ``models[]``."""
    entries = [_model_entry(text) for text in texts]
    if len(entries) > 1:
        flags["models"] = entries
    elif "=" in texts[0]:
        flags["model"] = entries[0]
    else:
        # Without a name, the model keeps the name in the settings.
        _put(flags, "model.path", entries[0]["path"])


def _model_entry(text: str) -> dict[str, Any]:
    """Return name and path of a ``[NAME=]PATH``; a path may be the name of a bundled model."""
    left, separator, right = text.partition("=")
    path = right if separator else left
    bundled = BUNDLED_MODEL.parent / path
    name = left if separator else Path(path).resolve().name
    if "/" not in path and not Path(path).exists() and bundled.is_dir():
        path = str(bundled)
    return {"name": name, "path": path}


def _of_a_flag(error: SettingsError, shortcuts: Mapping[str, Any]) -> FlagError | None:
    """Return an error that names the flag with the rejected value; None for other values."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        found = cause.errors()[0]
        where = ".".join(map(str, found["loc"]))
        for name, path in _SHORTCUTS.items():
            if path == where and shortcuts.get(name) is not None:
                flag = f"--{name.replace('_', '-')}"
                return FlagError(refusal(flag, str(shortcuts[name]), accepted(found)))
    return None


def _parse(item: str) -> tuple[str, Any]:
    """Return name and value of a ``NAME=VALUE``; the value is read as YAML."""
    name, separator, text = item.partition("=")
    name = name.strip()
    if not separator or not all(name.split(".")):
        raise SettingsError(f"--set {item}: must be NAME=VALUE, e.g. --set group.count=2")
    try:
        return name, read_yaml(text)
    except NotYaml as error:
        raise SettingsError(f"--set {item}: the value is not YAML: {error}") from error


def _put(flags: dict[str, Any], name: str, value: Any) -> None:
    """Set the dotted ``name`` in the nested mapping ``flags``."""
    *parents, last = name.split(".")
    for parent in parents:
        inner = flags.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"--set {name}: conflicts with the value set for {parent}")
        flags = inner
    flags[last] = value
