"""Credentials for a router: an API key, a client certificate, and the CA to trust.

``moe-serving up`` saves the credentials of its router in the state directory, readable only by the
owner, so that commands for a local router need no flags.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import SettingsError
from serving.yaml_text import read_yaml

SETTINGS_FILE = "settings.yaml"
"""File in the state directory with the settings of the run."""


@dataclass(frozen=True, slots=True)
class Access:
    """The credentials that a client presents, and the certificates that it trusts."""

    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    """PEM file with the CA of the router's certificate. None means the system's CAs."""
    pinned: bool = False
    """Whether ``ca_file`` is the router's certificate itself, trusted for any host name."""
    cert_file: str | None = None
    """PEM file with the client certificate. None means no client certificate."""
    key_file: str | None = None
    """PEM file with the private key of ``cert_file``; may be the same file."""
    server_name: str | None = None
    """Host name required in the router's certificate. None means the host in the address."""

    def headers(self) -> dict[str, str]:
        """Return the headers of a REST request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a gRPC call."""
        return tuple(self.headers().items())

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context for https addresses.

        Raises:
            SettingsError: A file cannot be used.
        """
        try:
            context = _client_context(self.ca_file, self.server_name)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"cannot use --ca-file {self.ca_file}: {error}") from error
        if self.cert_file is not None:
            try:
                # Without a password callback, OpenSSL prompts on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: b"")
            except (OSError, ssl.SSLError, ValueError) as error:
                raise SettingsError(
                    f"cannot use {self.cert_file} as a client certificate with the key in "
                    f"{self.key_file}: {error}"
                ) from error
        if self.pinned:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


NO_ACCESS = Access()


class _NamedContext(ssl.SSLContext):
    """A context that requires a fixed host name, regardless of the server's address."""

    server_name: str

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Wrap the socket of a blocking client (http.client, httpx)."""
        return super().wrap_socket(*args, **kwargs | {"server_hostname": self.server_name})

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Wrap the buffers of an asyncio client (aiohttp)."""
        return super().wrap_bio(*args, **kwargs | {"server_hostname": self.server_name})


def _client_context(ca_file: str | None, server_name: str | None) -> ssl.SSLContext:
    if server_name is None:
        return ssl.create_default_context(cafile=ca_file)
    # Like the default context, PROTOCOL_TLS_CLIENT requires a certificate and checks its name.
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
    """Return the credentials given by flags, completed with those of a local run.

    Args:
        api_key: ``--api-key``.
        ca_file: ``--ca-file``.
        cert_file: ``--cert-file``, with certificate and key.
        local: State directory of the local run. If None, the router is not local.
        server_name: ``--tls-server-name``.

    Raises:
        SettingsError: A file of the local run cannot be read.
    """
    saved = NO_ACCESS if local is None else local_access(local)
    return Access(
        api_key=api_key or saved.api_key,
        ca_file=ca_file or saved.ca_file,
        pinned=ca_file is None and saved.pinned,
        cert_file=cert_file or saved.cert_file,
        key_file=cert_file or saved.key_file,
        server_name=server_name,
    )


def local_access(folder: Path) -> Access:
    """Return the credentials that a run saved in its state directory; empty if there are none.

    Raises:
        SettingsError: A file cannot be read.
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
    """Return the operator's credentials for a local router.

    Args:
        security: The settings group ``security`` of the router.

    Raises:
        SettingsError: The operator's key cannot be read.
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
