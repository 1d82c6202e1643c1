"""Security of a router's ports: credentials, and the check for unprotected ports at start-up."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from serving.admission.budgets import BudgetsOf
from serving.admission.quotas import LimitsOf
from serving.clock import Clock
from serving.credentials.tls import TlsMaterial, client_port_tls, join_port_tls, watch_tls
from serving.credentials.tokens import JoinTokens, load_join_tokens
from serving.credentials.watched import Watched, keep_fresh
from serving.edge.auth.authenticator import Authenticator
from serving.edge.auth.keys import KeyRing, budgets_with, limits_with, watch_keys
from serving.errors import SettingsError
from serving.request_context import ReasoningPolicy
from serving.settings import SecuritySettings, Settings

_REMEDY = "; or bind to 127.0.0.1; or, on a trusted network, pass --insecure (security.insecure)"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")


@dataclass(frozen=True, slots=True)
class Security:
    """API keys, join tokens and certificates, reloaded when their files change.

    Parts that are not configured are None.
    """

    settings: SecuritySettings
    authenticator: Authenticator
    keys: Watched[KeyRing] | None
    join_tokens: Watched[JoinTokens] | None
    tls: Watched[TlsMaterial] | None
    join_tls: Watched[TlsMaterial] | None

    @classmethod
    def load(
        cls, settings: SecuritySettings, clock: Clock, no_budgets: str | None = None
    ) -> "Security":
        """Load all files named in the settings.

        Args:
            settings: Settings that name the files.
            clock: Time source for checking whether a key has expired.
            no_budgets: Why budgets in the key file cannot be counted. None if they can be counted.

        Raises:
            SettingsError: A file is missing or its content is invalid.
        """
        keys = watch_keys(settings, no_budgets)
        tokens_file = settings.join_token_file
        tls, join_tls = client_port_tls(settings), join_port_tls(settings)
        return cls(
            settings,
            Authenticator(None if keys is None else lambda: keys.value, clock),
            keys,
            None
            if tokens_file is None
            else Watched("join tokens", (tokens_file,), lambda: load_join_tokens(tokens_file)),
            None if tls is None else watch_tls("REST and gRPC certificates", tls),
            None if join_tls is None else watch_tls("join port certificates", join_tls),
        )

    def limits_of(self, default: LimitsOf) -> LimitsOf:
        """Return a lookup of tenant limits in the current key file, falling back to ``default``."""
        return limits_with(self.keys, default)

    def budgets_of(self) -> BudgetsOf:
        """Return a function that looks up budgets in the current key file."""
        return budgets_with(self.keys)

    def reasoning_of(self, key_id: str | None) -> ReasoningPolicy | None:
        """Return a key's policy in the current key file; None if the key has none or is unknown."""
        if self.keys is None or key_id is None:
            return None
        return self.keys.value.reasoning.get(key_id)

    async def keep_fresh(self) -> None:
        """Reload changed files every ``security.reload_interval`` seconds, until cancelled."""
        watched = (self.keys, self.join_tokens, self.tls, self.join_tls)
        await keep_fresh(
            [item for item in watched if item is not None], self.settings.reload_interval
        )


def require_secure_bind(settings: Settings) -> None:
    """Reject settings that expose an unprotected port to the network.

    With ``security.insecure``, log the problems as a warning instead.

    Raises:
        SettingsError: A port is unprotected; the message lists all problems and remedies in one
            line.
    """
    problems = list(insecure_binds(settings))
    if problems and settings.security.insecure:
        log.warning("insecure port exposed to the network", missing=problems)
    elif problems:
        raise SettingsError("; ".join(problems) + _REMEDY)


def insecure_binds(settings: Settings) -> Iterator[str]:
    """Yield one message for each protection missing on an exposed port."""
    router, security = settings.router, settings.security
    if not is_loopback(router.host):
        where = f"router.host {router.host or '(all addresses)'} is exposed to the network"
        if security.keys_file is None and security.tls_client_ca_file is None:
            yield (
                f"{where}: set security.keys_file (create one with moe-serving keys new) or "
                "security.tls_client_ca_file"
            )
        if security.tls_cert_file is None and not security.tls_elsewhere:
            yield (
                f"{where}: set security.tls_cert_file and security.tls_key_file, or "
                "security.tls_elsewhere=true if a proxy in front of the router terminates TLS"
            )
    if (
        not is_loopback(router.join_host)
        and security.join_token_file is None
        and security.join_tls_client_ca_file is None
    ):
        yield (
            f"router.join_host {router.join_host or '(all addresses)'} is exposed to the "
            "network, where any process could join and receive requests: set "
            "security.join_token_file "
            "(and link.token_file for the ranks) or security.join_tls_client_ca_file"
        )


def is_loopback(host: str) -> bool:
    """Return whether a bind address is reachable only from this machine.

    Host names other than "localhost" count as reachable from outside.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
