"""Settings of the link, the gRPC stream from a rank to a router."""

from pydantic import Field, model_validator

from serving.settings.base import Seconds, SettingsGroup


class LinkSettings(SettingsGroup):
    """The gRPC stream between ranks and routers."""

    routers: tuple[str, ...] = ("127.0.0.1:50052",)
    """Router addresses (host:port) that ranks connect to."""
    connect_timeout: Seconds = 5.0
    """Time to connect to a router, seconds."""
    hello_timeout: Seconds = 10.0
    """Time for the first message on a new connection to arrive, seconds."""
    backoff_initial: Seconds = 0.2
    """Delay before the first reconnect, seconds; it grows with each failure."""
    backoff_max: Seconds = 5.0
    """Maximum delay between reconnects, seconds."""
    load_interval: Seconds = 0.5
    """Interval between load reports of a rank, seconds."""
    keepalive: Seconds = 5.0
    """Interval between HTTP/2 pings, and time to wait for the reply before the peer counts as lost,
    seconds."""
    outbox_limit: int = Field(65536, ge=64)
    """Maximum number of deltas that wait for a slow router before its requests are aborted."""
    max_frame_bytes: int = Field(64 * 2**20, ge=2**20)
    """Maximum size of a message on the link, bytes."""
    token_file: str | None = None
    """File with the join token, on the rank's machine; its first line is sent. Null means no
    token."""
    tls_ca_file: str | None = None
    """PEM file with the certificate authorities for routers' certificates. If null, ranks connect
    in plain text."""
    tls_cert_file: str | None = None
    """PEM file with the rank's client certificate, for routers that require one."""
    tls_key_file: str | None = None
    """PEM file with the private key of the certificate in tls_cert_file."""
    tls_server_name: str | None = None
    """Name that a router's certificate must contain. Null means the host that the rank connects to;
    for dns:/// addresses, the name that is resolved."""

    @model_validator(mode="after")
    def _check(self) -> "LinkSettings":
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file must be set together")
        if self.tls_cert_file is not None and self.tls_ca_file is None:
            raise ValueError("tls_cert_file requires tls_ca_file")
        return self
