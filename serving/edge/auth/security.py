"""All that protects a router, loaded from its settings and kept up to date."""

from dataclasses import dataclass

from serving.admission.limits import LimitsOf
from serving.clock import Clock
from serving.credentials.tls import TlsMaterial, client_port_tls, join_port_tls, watch_tls
from serving.credentials.tokens import JoinTokens, load_join_tokens
from serving.credentials.watched import Watched, keep_fresh
from serving.edge.auth.authenticator import Authenticator
from serving.edge.auth.keys import KeyRing, limits_with, watch_keys
from serving.edge.auth.rest import Door
from serving.settings import SecuritySettings


@dataclass(frozen=True, slots=True)
class Security:
    """Keys, join tokens and certificates as they are in force now; none: not asked for."""

    settings: SecuritySettings
    authenticator: Authenticator
    keys: Watched[KeyRing] | None
    join_tokens: Watched[JoinTokens] | None
    tls: Watched[TlsMaterial] | None
    join_tls: Watched[TlsMaterial] | None

    @classmethod
    def load(cls, settings: SecuritySettings, clock: Clock) -> "Security":
        """Read all the files.

        Raises:
            SettingsError: one cannot be used.
        """
        keys = watch_keys(settings)
        tokens_file = settings.join_token_file
        tls, join_tls = client_port_tls(settings), join_port_tls(settings)
        return cls(
            settings,
            Authenticator(None if keys is None else lambda: keys.value, clock),
            keys,
            None
            if tokens_file is None
            else Watched("join tokens", (tokens_file,), lambda: load_join_tokens(tokens_file)),
            None if tls is None else watch_tls("certificates of REST and gRPC", tls),
            None if join_tls is None else watch_tls("certificates of the join port", join_tls),
        )

    def door(self) -> Door:
        """Return what REST requests go through."""
        return Door(self.authenticator, open_metrics=self.settings.open_metrics)

    def limits_of(self, default: LimitsOf) -> LimitsOf:
        """Return tenants' limits as the keys' file has them now, over the default ones."""
        return limits_with(self.keys, default)

    async def keep_fresh(self) -> None:
        """Look for changed files, for ever."""
        watched = (self.keys, self.join_tokens, self.tls, self.join_tls)
        await keep_fresh(
            [item for item in watched if item is not None], self.settings.reload_interval
        )
