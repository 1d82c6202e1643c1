"""Certificates as gRPC takes them, for the servers of both ports and for ranks that dial."""

import grpc

from serving.credentials.tls import DialTls, TlsMaterial
from serving.credentials.watched import Watched


def server_credentials(watched: Watched[TlsMaterial]) -> grpc.ServerCredentials:
    """Return credentials that use, for each handshake, what is in force at that moment."""
    given = 0

    def newest() -> grpc.ServerCertificateConfiguration | None:
        """Return what has changed since the last handshake; gRPC asks from its own threads."""
        nonlocal given
        version = watched.version
        if version == given:
            return None
        given = version
        return _configuration(watched.value)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(watched.value),
        newest,  # type: ignore[arg-type]  # for the stubs there is always a change
        require_client_authentication=watched.value.client_ca is not None,
    )


def channel_credentials(dial: DialTls) -> grpc.ChannelCredentials:
    """Return what a rank dials with."""
    return grpc.ssl_channel_credentials(dial.ca, dial.key, dial.cert)


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.cert)], root_certificates=material.client_ca
    )
