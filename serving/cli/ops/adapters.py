"""``moe-serving adapters``: lists, loads and unloads LoRA adapters at every router."""

from enum import StrEnum
from typing import Annotated

import typer

from serving.cli.ops.operate import connect_routers
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    GrpcAddressesOption,
    ServerNameOption,
)
from serving.errors import InvalidRequest


class Action(StrEnum):
    """Subcommands."""

    LIST = "list"
    LOAD = "load"
    UNLOAD = "unload"


def adapters_command(
    action: Annotated[Action, typer.Argument(help="List adapters, load one, or unload one.")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name of the adapter.", show_default=False),
    ] = None,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="load: Folder of the adapter, inside lora.folder of the model.",
            show_default=False,
        ),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="load: Base model.",
            show_default="the only one that takes adapters",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="load: Replace an adapter of the same name.")
    ] = False,
    grpc_addresses: GrpcAddressesOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """List, load and unload LoRA adapters.

    Routers check the files when an adapter is loaded; ranks load it when a request needs it.
    Adapters loaded in this way are forgotten when a router restarts: add those that must stay to
    the settings.

    For example:

      moe-serving adapters load friendly /adapters/friendly

      moe-serving adapters list
    """
    if action is not Action.LIST and name is None:
        raise InvalidRequest(f"moe-serving adapters {action} needs the name of an adapter")
    if action is Action.LOAD and path is None:
        raise InvalidRequest("moe-serving adapters load needs the adapter's folder")
    for router in connect_routers(grpc_addresses, api_key, ca_file, cert_file, server_name):
        if action is Action.LIST:
            print(f"{router.address}:")
            for each in router.adapters():
                origin = "loaded at run time" if each.loaded_at_run_time else "from the settings"
                print(
                    f"  {each.name} of {each.model}: {each.path}, {origin}, "
                    f"on {each.resident_ranks} ranks"
                )
        elif action is Action.LOAD:
            router.load_adapter(name or "", path or "", model, replace=replace)
            print(f"{name}: loaded at {router.address}")
        elif action is Action.UNLOAD:
            router.unload_adapter(name or "")
            print(f"{name}: unloaded at {router.address}")
