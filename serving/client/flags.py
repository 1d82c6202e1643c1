"""Command-line flags for the address of a router and for credentials, shared by all commands.

Also exports the readers of ``serving.flags`` for the load generator, which imports only
``serving.client``.
"""

from typing import Annotated, Any

import typer

from serving.flags.messages import FlagError, refusal
from serving.flags.paths import OutputDirectory, ReadableDirectory, ReadableFile
from serving.flags.values import (
    MAX_SECONDS,
    Choice,
    CommaSeparated,
    GrpcAddress,
    HttpUrl,
    Number,
    Pair,
    Text,
    WholeNumber,
    seconds,
)

__all__ = [
    "CA_VARIABLE",
    "CERT_VARIABLE",
    "KEY_VARIABLE",
    "MAX_SECONDS",
    "NAME_VARIABLE",
    "ApiKeyOption",
    "CaFileOption",
    "CertFileOption",
    "Choice",
    "CommaSeparated",
    "FlagError",
    "GrpcAddress",
    "GrpcAddressesOption",
    "HttpUrl",
    "Number",
    "OutputDirectory",
    "Pair",
    "ReadableDirectory",
    "ReadableFile",
    "RestUrlOption",
    "ServerNameOption",
    "Text",
    "WholeNumber",
    "refusal",
    "renamed_flags",
    "seconds",
]

KEY_VARIABLE = "MOE_SERVING_API_KEY"
CA_VARIABLE = "MOE_SERVING_CA_FILE"
CERT_VARIABLE = "MOE_SERVING_CERT_FILE"
NAME_VARIABLE = "MOE_SERVING_TLS_SERVER_NAME"

_PANEL = "Router"

RestUrlOption = Annotated[
    str | None,
    typer.Option(
        "--rest-url",
        metavar="URL",
        help="REST address of the router, http://HOST:PORT or https://HOST:PORT.",
        show_default="the local run's",
        rich_help_panel=_PANEL,
    ),
]
GrpcAddressesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grpc-address",
        metavar="HOST:PORT",
        help="gRPC address of a router; repeat it for each router, or write dns:///NAME:PORT for "
        "all addresses behind a name.",
        show_default="the local run's",
        rich_help_panel=_PANEL,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=KEY_VARIABLE,
        help="API key. Prefer the environment variable: other users can see command lines.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CaFileOption = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        envvar=CA_VARIABLE,
        help="PEM file with the CA of the router's certificate; enables TLS for gRPC.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CertFileOption = Annotated[
    str | None,
    typer.Option(
        "--cert-file",
        metavar="FILE",
        envvar=CERT_VARIABLE,
        help="PEM file with a client certificate and its key, if the router requires it.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ServerNameOption = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        metavar="NAME",
        envvar=NAME_VARIABLE,
        help="Host name in the certificate, if it differs from the host in the address, as "
        "with kubectl port-forward.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


def renamed_flags(**names: str) -> dict[str, Any]:
    """Return typer context settings for a command that still accepts earlier names of its flags.

    Help and errors show only the current names.

    Args:
        names: Maps the earlier name of a flag to the current one, both without leading dashes:
            ``renamed_flags(url="rest-url")``.
    """
    return {"token_normalize_func": lambda name: names.get(name, name)}
