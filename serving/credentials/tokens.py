"""Join tokens: the secret with which a rank authenticates to a router.

A join token is not an API key. A leaked API key permits sending requests; a leaked join token
permits answering the requests of every client. A router accepts every token in its file, which
allows rotation: add the new token, update the ranks, then remove the old token.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from serving.credentials.watched import read_text
from serving.errors import SettingsError

AUTHORIZATION = "authorization"
_SCHEME = "bearer "
MIN_LENGTH = 20
"""Minimum token length, characters; 20 random base64 characters contain 120 bits."""


@dataclass(frozen=True, slots=True)
class JoinTokens:
    """The tokens that a router accepts."""

    accepted: tuple[bytes, ...]

    def accept(self, token: str | None) -> bool:
        """Return whether a token is accepted, in constant time with regard to the tokens."""
        presented = (token or "").encode("utf-8", "surrogateescape")
        accepted = False
        for known in self.accepted:  # no early exit: the number of comparisons is constant
            accepted |= hmac.compare_digest(presented, known)
        return accepted

    def __repr__(self) -> str:
        """Show the number of tokens, never a token."""
        return f"JoinTokens({len(self.accepted)})"


def new_token() -> str:
    """Return a new random token (256 bits)."""
    return secrets.token_urlsafe(32)


def read_tokens(path: str) -> tuple[str, ...]:
    """Read the tokens in a file: one per line; blank lines and lines that start with # are skipped.

    Raises:
        SettingsError: The file has no token, or a token that is too short or not visible ASCII.
    """
    lines = (line.strip() for line in read_text(path, "join tokens").splitlines())
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise SettingsError(f"{path} contains no join token: write a random one to it")
    for number, token in enumerate(tokens, 1):
        visible = token.isascii() and token.isprintable() and " " not in token
        if len(token) < MIN_LENGTH or not visible:
            raise SettingsError(
                f"token {number} in {path} must be at least {MIN_LENGTH} visible ASCII characters"
            )
    return tokens


def load_join_tokens(path: str) -> JoinTokens:
    """Load the tokens that a router accepts.

    Raises:
        SettingsError: See ``read_tokens``.
    """
    return JoinTokens(tuple(token.encode() for token in read_tokens(path)))


def join_metadata(path: str | None) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata with which a rank joins.

    Args:
        path: Token file, read at each call; the first token is sent. If None, no token is sent.

    Raises:
        SettingsError: See ``read_tokens``.
    """
    if path is None:
        return ()
    return ((AUTHORIZATION, f"Bearer {read_tokens(path)[0]}"),)


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """Return the token of an ``authorization: Bearer`` header, or None."""
    value = headers.get(AUTHORIZATION, "")
    if value[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return value[len(_SCHEME) :].strip() or None
