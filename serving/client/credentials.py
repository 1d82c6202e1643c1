"""With what a command gets into a router: a key, a certificate, and whose certificates it trusts.

Commands that ask the run of this machine need nothing typed: ``up`` leaves what they need in
its state folder, readable by the owner alone.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.errors import SettingsError
from serving.yaml_text import read_yaml

KEY_VARIABLE = "MOE_SERVING_API_KEY"
CA_VARIABLE = "MOE_SERVING_CA_FILE"
CERT_VARIABLE = "MOE_SERVING_CERT_FILE"
NAME_VARIABLE = "MOE_SERVING_TLS_SERVER_NAME"
SETTINGS_FILE = "settings.yaml"
"""In the state folder: what the run was started with."""

_PANEL = "Access"

ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=KEY_VARIABLE,
        help="The router's API key. Better in the environment: others can see command lines.",
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
        help="PEM file with the authority of the router's certificate: turns TLS on for gRPC.",
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
        help="PEM file with a client's certificate and its key, where the router asks for one.",
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
        help="Name that the router's certificate must have, where it is reached by another one, "
        "as through kubectl port-forward. [default: the address's]",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """What is shown to a router, and what is asked of it."""

    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    """None: the system's authorities."""
    pinned: bool = False
    """``ca_file`` is the router's own certificate: that one is trusted, whatever its name."""
    cert_file: str | None = None
    """The client's own certificate; none: it shows none."""
    key_file: str | None = None
    """With its private key; may be the same file."""
    server_name: str | None = None
    """The name that the router's certificate must have; None: that of its address."""

    def headers(self) -> dict[str, str]:
        """Return what a REST request carries."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what an RPC carries."""
        return tuple(self.headers().items())

    def ssl_context(self) -> ssl.SSLContext:
        """Return how https addresses are checked.

        Raises:
            SettingsError: the file cannot be used.
        """
        try:
            context = _trusting(self.ca_file, self.server_name)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"cannot use --ca-file {self.ca_file}: {error}") from error
        if self.cert_file is not None:
            try:
                # Without a password of ours OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: b"")
            except (OSError, ssl.SSLError, ValueError) as error:
                raise SettingsError(
                    f"cannot use {self.cert_file} as a client's certificate with the key of "
                    f"{self.key_file}: {error}"
                ) from error
        if self.pinned:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


NO_ACCESS = Access()


class _NamedContext(ssl.SSLContext):
    """Asks for a server by one name, whatever address it is reached at."""

    server_name: str

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Begin a connection of blocking clients (urllib, httpx)."""
        return super().wrap_socket(*args, **kwargs | {"server_hostname": self.server_name})

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection of asyncio (aiohttp)."""
        return super().wrap_bio(*args, **kwargs | {"server_hostname": self.server_name})


def _trusting(ca_file: str | None, server_name: str | None) -> ssl.SSLContext:
    if server_name is None:
        return ssl.create_default_context(cafile=ca_file)
    # Requires a certificate and checks its name, as the default context does.
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    return context


def access_from(
    api_key: str | None,
    ca_file: str | None,
    cert_file: str | None,
    local: Path | None,
    server_name: str | None = None,
) -> Access:
    """Return what was given, else what the run of the state folder ``local`` (if any) left.

    Raises:
        SettingsError: what it left cannot be read.
    """
    left = NO_ACCESS if local is None else local_access(local)
    return Access(
        api_key=api_key or left.api_key,
        ca_file=ca_file or left.ca_file,
        pinned=ca_file is None and left.pinned,
        cert_file=cert_file or left.cert_file,
        key_file=cert_file or left.key_file,
        server_name=server_name,
    )


def local_access(folder: Path) -> Access:
    """Return how the run of a state folder is reached; nothing if it left nothing.

    Raises:
        SettingsError: its files cannot be read.
    """
    try:
        content: Any = read_yaml((folder / SETTINGS_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return NO_ACCESS
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {folder / SETTINGS_FILE}: {error}") from error
    security = content.get("security") if isinstance(content, Mapping) else None
    return access_of(security if isinstance(security, Mapping) else {})


def access_of(security: Mapping[str, Any]) -> Access:
    """Return how a router of this machine with these settings (group security) is reached.

    Raises:
        SettingsError: the operator's key cannot be read.
    """
    key_file = security.get("operator_key_file") if security.get("keys_file") else None
    cert = security.get("tls_cert_file")
    try:
        key = None if key_file is None else Path(key_file).read_text("utf-8").strip()
    except OSError as error:
        raise SettingsError(f"cannot read {key_file}: {error.strerror}") from error
    return Access(
        api_key=key,
        ca_file=cert,
        pinned=cert is not None,
        cert_file=security.get("operator_tls_cert_file"),
        key_file=security.get("operator_tls_key_file"),
    )
