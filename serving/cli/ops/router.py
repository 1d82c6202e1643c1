"""``moe-serving router``: one router process in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import (
    ConfigOption,
    GrpcPortOption,
    InsecureOption,
    JoinPortOption,
    ModelOption,
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
    model: ModelOption = None,
    insecure: InsecureOption = None,
    ports_file: Annotated[
        Path | None,
        typer.Option("--ports-file", metavar="FILE", help="Write the bound addresses here (JSON)."),
    ] = None,
) -> None:
    """Run one router: OpenAI REST, gRPC, and the port that ranks join.

    It loads the model's tokenizer, never its weights, and needs neither Ray nor a GPU. SIGTERM
    makes it unready, lets requests in flight finish, then ends it.
    """
    settings = settings_from(
        config, sets, port=port, grpc_port=grpc_port, join_port=join_port, model=model,
        insecure=insecure,
    )  # fmt: skip
    # vLLM's server code takes seconds to import: settings errors come before that.
    from serving.router.app import serve_router

    serve_router(settings, ports_file)
