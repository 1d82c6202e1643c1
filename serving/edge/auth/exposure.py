"""Refuses to start a router that would be open to the network by oversight."""

import ipaddress
from collections.abc import Iterator

import structlog

from serving.errors import SettingsError
from serving.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")

_HOW = "; or listen on 127.0.0.1, or say --insecure (security.insecure) if the network is closed"


def require_guarded(settings: Settings) -> None:
    """Return if every port that others can reach is protected, or the user wants it open.

    Raises:
        SettingsError: with what is missing and what to do, all of it in one line.
    """
    missing = list(unguarded(settings))
    if missing and settings.security.insecure:
        log.warning("open to the network", missing=missing)
    elif missing:
        raise SettingsError("; ".join(missing) + _HOW)


def unguarded(settings: Settings) -> Iterator[str]:
    """Yield what is missing, one sentence for each port's want."""
    router, security = settings.router, settings.security
    if not is_loopback(router.host):
        where = f"router.host {router.host or '(all addresses)'} can be reached from outside"
        if security.keys_file is None and security.tls_client_ca_file is None:
            yield (
                f"{where}: set security.keys_file (moe-serving keys new makes one) or "
                "security.tls_client_ca_file"
            )
        if security.tls_cert_file is None and not security.tls_elsewhere:
            yield (
                f"{where}: set security.tls_cert_file and security.tls_key_file, or "
                "security.tls_elsewhere=true if TLS ends in front of the router"
            )
    if (
        not is_loopback(router.join_host)
        and security.join_token_file is None
        and security.join_tls_client_ca_file is None
    ):
        yield (
            f"router.join_host {router.join_host or '(all addresses)'} can be reached from "
            "outside, and whoever joins gets to answer requests: set security.join_token_file "
            "(and link.token_file for the ranks) or security.join_tls_client_ca_file"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches ``host``; names other than localhost may not be."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
