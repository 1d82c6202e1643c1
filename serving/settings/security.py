"""Settings of security: API keys, TLS, join tokens and limits on what a client may send."""

from pydantic import Field, model_validator

from serving.settings.base import Seconds, SettingsGroup


class SecuritySettings(SettingsGroup):
    """Authentication, TLS and input limits of a router (deploy/docs/security.md). Files are
    reloaded when they change; while a changed file is invalid, its last valid content stays in
    effect.
    """

    insecure: bool = False
    """Whether to allow non-loopback addresses without API keys, join tokens or TLS. Only for closed
    test networks."""
    tls_elsewhere: bool = False
    """Whether TLS is terminated in front of this process (ingress, service mesh), so that plain
    text on non-loopback addresses is intended. API keys and join tokens are still required."""
    keys_file: str | None = None
    """YAML file with hashed API keys, created by moe-serving keys new. If null, no key is required
    and every client has all permissions."""
    operator_key_file: str | None = None
    """File with one additional key in plain text, with role admin, which moe-serving up creates for
    its own requests to the router. Ignored without keys_file."""
    open_metrics: bool = False
    """Whether to serve /metrics without a key. Otherwise it requires role metrics or admin."""
    tls_cert_file: str | None = None
    """PEM file with the certificate chain of REST and gRPC. Null means plain text."""
    tls_key_file: str | None = None
    """PEM file with the private key of the certificate in tls_cert_file, without a password."""
    tls_client_ca_file: str | None = None
    """PEM file with the certificate authorities for client certificates, which REST and gRPC then
    require. If null, no client certificate is required."""
    operator_tls_cert_file: str | None = None
    """PEM file with the client certificate that moe-serving up, status, chat and drain present to
    the local router if tls_client_ca_file is set."""
    operator_tls_key_file: str | None = None
    """PEM file with the private key of the certificate in operator_tls_cert_file, without a
    password."""
    join_token_file: str | None = None
    """File with the join tokens that ranks may present, one per line, e.g. two during a rotation.
    If null, no token is required."""
    join_tls_cert_file: str | None = None
    """PEM file with the certificate chain of the join port. Null means plain text."""
    join_tls_key_file: str | None = None
    """PEM file with the private key of the certificate in join_tls_cert_file, without a
    password."""
    join_tls_client_ca_file: str | None = None
    """PEM file with the certificate authorities for ranks' certificates, which the join port then
    requires. If null, no client certificate is required."""
    reload_interval: Seconds = 5.0
    """Interval at which the files of these settings are checked for changes, seconds."""
    max_header_bytes: int = Field(32 * 2**10, ge=2**10)
    """Maximum size of the request line and headers over REST, and of the metadata over gRPC,
    bytes."""
    max_headers: int = Field(100, ge=8)
    """Maximum number of headers of a REST request."""
    max_body_values: int = Field(16_384, ge=256)
    """Maximum number of objects, lists and commas in a REST request body, and of set fields and
    list items in a gRPC message. For /v1/responses, where each of them costs more, the maximum is
    half of it. Parsing a body at the default limit blocks other requests for about 50 ms."""
    max_pending_bytes: int = Field(2**28, ge=2**20)
    """Maximum total size of incompletely received requests, over all connections of a port, bytes.
    Beyond it, requests that need more memory are rejected with OVERLOADED."""
    header_timeout: Seconds = 20.0
    """Time for a REST client to send the headers of a request, seconds."""

    @model_validator(mode="after")
    def _check(self) -> "SecuritySettings":
        for prefix in ("", "join_", "operator_"):
            cert, key, ca = (
                getattr(self, f"{prefix}tls_{name}_file", None)
                for name in ("cert", "key", "client_ca")
            )
            if (cert is None) != (key is None):
                raise ValueError(
                    f"{prefix}tls_cert_file and {prefix}tls_key_file must be set together"
                )
            if ca is not None and cert is None:
                raise ValueError(
                    f"{prefix}tls_client_ca_file requires {prefix}tls_cert_file and "
                    f"{prefix}tls_key_file"
                )
        return self
