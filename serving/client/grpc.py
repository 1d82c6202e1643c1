"""How commands reach a router over gRPC, and what its errors become."""

from pathlib import Path
from typing import Any

import grpc

from serving import errors
from serving.client.credentials import Access

CONNECT_TIMEOUT = 5.0
"""Seconds until a router that does not answer counts as not running."""

_BY_CODE: dict[grpc.StatusCode, type[errors.ServingError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.NotReady,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
}


def open_channel(target: str, access: Access, server_name: str | None = None) -> grpc.Channel:
    """Return a channel to ``target`` (``host:port``), connected lazily.

    Args:
        target: where.
        access: what is shown and trusted.
        server_name: the name that the certificate must have; None: that of ``access``, else the
            target's own.

    Raises:
        SettingsError: a file of ``access`` cannot be read.
    """
    options: tuple[tuple[str, int | str], ...] = (("grpc.enable_http_proxy", 0),)
    server_name = access.server_name or server_name
    if server_name is not None:
        options += (("grpc.ssl_target_name_override", server_name),)
    if access.ca_file is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, channel_credentials(access), options=options)


def channel_credentials(access: Access) -> grpc.ChannelCredentials:
    """Return what a channel checks, and what it shows.

    Raises:
        SettingsError: a file of ``access`` cannot be read.
    """
    authorities, key, cert = (
        None if file is None else read_pem(file)
        for file in (access.ca_file, access.key_file, access.cert_file)
    )
    return grpc.ssl_channel_credentials(authorities, key, cert)


def read_pem(file: str) -> bytes:
    """Return the content of a PEM file.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise errors.SettingsError(f"cannot read {file}: {error.strerror}") from error


def require_answer(channel: grpc.Channel, target: str) -> None:
    """Return when the router answers.

    Raises:
        NotReady: it does not.
    """
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT)
    except grpc.FutureTimeoutError as error:
        raise errors.NotReady(
            f"nothing answers gRPC at {target} (if it speaks TLS: --ca-file)"
        ) from error


def error_of(
    error: Any, target: str, not_found: type[errors.ServingError] = errors.ModelNotFound
) -> errors.ServingError:
    """Translate what a stub raised: an RpcError that is the call as well (code, details)."""
    code: grpc.StatusCode = error.code()
    message = str(error.details() or f"{target} answered {code.name}")
    if code is grpc.StatusCode.NOT_FOUND:
        return not_found(message)
    return _BY_CODE.get(code, errors.EngineError)(message)
