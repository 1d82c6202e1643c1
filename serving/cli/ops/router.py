"""``moe-serving router``: runs one router in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import (
    ConfigOption,
    GrpcPortOption,
    InsecureOption,
    JoinPortOption,
    ModelsOption,
    PortOption,
    SetOption,
    settings_from,
)


def router_command(
    config: ConfigOption = None,
    sets: SetOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    join_port: JoinPortOption = None,
    model: ModelsOption = None,
    insecure: InsecureOption = None,
    ports_file: Annotated[
        Path | None,
        typer.Option(
            "--ports-file", metavar="FILE", help="Write the bound addresses to this file, as JSON."
        ),
    ] = None,
) -> None:
    """Run one router: OpenAI REST, gRPC, and the port that ranks connect to.

    A router loads the model's tokenizer but not its weights, and needs neither Ray nor a GPU. On
    SIGTERM it becomes unready, lets running requests finish, and exits.
    """
    settings = settings_from(
        config, sets, port=port, grpc_port=grpc_port, join_port=join_port, models=model,
        insecure=insecure,
    )  # fmt: skip
    # Importing vLLM's server code takes seconds, so report settings errors first.
    from serving.router.process import serve_router

    serve_router(settings, ports_file)
