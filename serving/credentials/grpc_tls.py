"""Certificates as gRPC takes them, for ranks that dial."""

import grpc

from serving.credentials.tls import DialTls


def channel_credentials(dial: DialTls) -> grpc.ChannelCredentials:
    """Return what a rank dials with."""
    return grpc.ssl_channel_credentials(dial.ca, dial.key, dial.cert)
