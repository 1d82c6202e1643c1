"""TLS certificates of a port: loaded as a unit, and replaced without closing connections.

A certificate and its key are loaded as a pair; a mismatched pair is rejected and never takes
effect. New handshakes use the new pair; established connections are not affected.
"""

import ssl
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from serving.credentials.watched import Watched
from serving.errors import SettingsError
from serving.settings import LinkSettings, SecuritySettings


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of one port's certificate, key and client CA (PEM)."""

    cert: str
    key: str
    client_ca: str | None = None
    """CA certificates; if set, clients must present a certificate signed by one of them."""


_H2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 cipher suites for HTTP/2: those that RFC 9113, appendix A, does not prohibit."""


class Alpn(StrEnum):
    """Application protocols that a server negotiates in the handshake (RFC 7301)."""

    HTTP_1_1 = "http/1.1"
    H2 = "h2"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Content of the files at one point in time, and the server contexts built from it."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    contexts: dict[Alpn, ssl.SSLContext]
    """One server context per protocol."""


def client_port_tls(settings: SecuritySettings) -> TlsFiles | None:
    """Return the TLS files of the REST and gRPC ports; None for plain text."""
    return _files(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)


def join_port_tls(settings: SecuritySettings) -> TlsFiles | None:
    """Return the TLS files of the port that ranks join; None for plain text."""
    return _files(
        settings.join_tls_cert_file, settings.join_tls_key_file, settings.join_tls_client_ca_file
    )


def watch_tls(what: str, files: TlsFiles) -> Watched[TlsMaterial]:
    """Load a port's certificates; ``refresh`` on the result reloads changed files.

    Args:
        what: Name in log lines.
        files: The files to load.

    Raises:
        SettingsError: A file cannot be read, or certificate and key do not match.
    """
    paths = (files.cert, files.key, files.client_ca)
    return Watched(what, paths, lambda: load_tls(files))


def load_tls(files: TlsFiles) -> TlsMaterial:
    """Load and validate a port's certificates.

    Raises:
        SettingsError: A file cannot be read, or certificate and key do not match.
    """
    before = _contents(files)
    contexts = {alpn: _server_context(files, alpn) for alpn in Alpn}
    if _contents(files) != before:
        raise SettingsError(f"{files.cert} or its key changed while being read")
    cert, key, client_ca = before
    assert cert is not None
    assert key is not None
    return TlsMaterial(cert, key, client_ca, contexts)


def _server_context(files: TlsFiles, alpn: Alpn) -> ssl.SSLContext:
    context = _bare_context(alpn)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _present(context, files.cert, files.key)
    if files.client_ca is not None:
        _trust(context, files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        # With a session ticket, a client could reconnect after its CA has been removed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def following_context(watched: Watched[TlsMaterial], alpn: Alpn = Alpn.HTTP_1_1) -> ssl.SSLContext:
    """Return a server context whose handshakes always use the current certificates.

    The server keeps this context. Its SNI callback switches each handshake to the newest context.
    This also makes it possible to remove CAs, which a context in use does not permit.
    """
    context = _context_like(watched.value.contexts[alpn], alpn)

    def newest(handshake: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        handshake.context = watched.value.contexts[alpn]

    context.sni_callback = newest
    return context


def _context_like(known: ssl.SSLContext, alpn: Alpn) -> ssl.SSLContext:
    """Return a new context without a certificate, with the protocol settings of ``known``."""
    context = _bare_context(alpn)
    context.minimum_version = known.minimum_version
    context.verify_mode = known.verify_mode
    context.options |= known.options & ssl.OP_NO_TICKET
    context.num_tickets = known.num_tickets
    return context


def _bare_context(alpn: Alpn) -> ssl.SSLContext:
    """Return a context without certificates that complies with RFC 9113, section 9.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([alpn])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if alpn is Alpn.H2:
        context.set_ciphers(_H2_CIPHERS)
    return context


def load_dial_tls(settings: LinkSettings) -> ssl.SSLContext | None:
    """Return a context with which a rank dials a router; None for plain text.

    The files are read at each call.

    Raises:
        SettingsError: A file cannot be read, or certificate and key do not match.
    """
    if settings.tls_ca_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([Alpn.H2])
    _read(settings.tls_ca_file)  # reports a missing file with its name
    _trust(context, settings.tls_ca_file)
    cert, key = settings.tls_cert_file, settings.tls_key_file
    if cert is not None and key is not None:
        for path in (cert, key):
            _read(path)
        _present(context, cert, key)
    return context


def _files(cert: str | None, key: str | None, client_ca: str | None) -> TlsFiles | None:
    if cert is None or key is None:
        return None
    return TlsFiles(cert, key, client_ca)


def _contents(files: TlsFiles) -> tuple[bytes | None, ...]:
    return tuple(
        None if path is None else _read(path) for path in (files.cert, files.key, files.client_ca)
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def _present(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Present a certificate in the context's handshakes."""
    try:
        # Without a password callback, OpenSSL prompts on the terminal if the key is encrypted.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"{cert} and {key} are not a matching PEM certificate and unencrypted "
            f"key: {_words(error)}"
        ) from error


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingsError(
            f"{path} contains no valid PEM certificates: {_words(error)}"
        ) from error


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
