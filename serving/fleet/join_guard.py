"""What protects the port that ranks join: whoever joins gets requests and answers them."""

from collections.abc import Iterable
from dataclasses import dataclass

from serving.credentials.tls import TlsMaterial
from serving.credentials.tokens import JoinTokens, bearer_of
from serving.credentials.watched import Watched
from serving.fleet.membership import JoinRefused
from serving.link.v1 import link_pb2


@dataclass(frozen=True, slots=True)
class JoinGuard:
    """Credentials as they are in force now."""

    tokens: Watched[JoinTokens] | None = None
    """None: no token is asked for."""
    tls: Watched[TlsMaterial] | None = None
    """None: plain text. With client authorities gRPC itself turns others away."""

    def check(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Return if the call's metadata has the credentials that it takes.

        Raises:
            JoinRefused: it has not; the message never says what would be right.
        """
        if self.tokens is None:
            return
        headers = {key: value for key, value in metadata or () if isinstance(value, str)}
        token = bearer_of(headers)
        if self.tokens.value.accept(token):
            return
        raise JoinRefused(
            link_pb2.Refusal.CREDENTIALS,
            "the rank shows no join token: give it the router's with link.token_file"
            if token is None
            else "the rank's join token is not one of this router's: link.token_file of the rank "
            "and security.join_token_file of the router must hold the same",
        )
