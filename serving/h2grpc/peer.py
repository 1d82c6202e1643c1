"""Address and authentication context of a client, in gRPC's format."""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

IDENTITY_KEYS = ("x509_subject_alternative_name", "x509_common_name")
"""Keys of ``auth_context`` that identify a client; the first one present is used."""
_INSECURE: Mapping[str, Iterable[bytes]] = {
    "transport_security_type": [b"insecure"],
    "security_level": [b"TSI_SECURITY_NONE"],
}
_ALTERNATIVES = {
    "DNS": "peer_dns",
    "URI": "peer_uri",
    "IP Address": "peer_ip",
    "email": "peer_email",
}


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the client's address in gRPC's format."""
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple):
        return "unknown"
    host, port = str(address[0]), address[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def auth_context_of(transport: asyncio.BaseTransport) -> Mapping[str, Iterable[bytes]]:
    """Return the TLS properties of a client; names only if it presented a certificate."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return _INSECURE
    found: dict[str, list[bytes]] = {
        "transport_security_type": [b"ssl"],
        "security_level": [b"TSI_PRIVACY_AND_INTEGRITY"],
        "ssl_tls_version": [(tls.version() or "").encode()],
        "ssl_session_reused": [b"true" if tls.session_reused else b"false"],
    }
    raw: bytes | None = tls.getpeercert(binary_form=True)
    certificate: Mapping[str, Any] = tls.getpeercert() or {}
    if raw is not None:
        found["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(raw).encode()]
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                found.setdefault("x509_common_name", []).append(value.encode())
    for kind, value in certificate.get("subjectAltName", ()):
        found.setdefault("x509_subject_alternative_name", []).append(value.encode())
        if (key := _ALTERNATIVES.get(kind)) is not None:
            found.setdefault(key, []).append(value.encode())
    return found
