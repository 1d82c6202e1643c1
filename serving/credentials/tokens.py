"""Join tokens: the secret that a rank shows before a router listens to it.

They are not API keys: a key that leaks lets somebody ask questions, a join token would let him
answer everybody's. A router takes any line of its file, so that a new token can go out to the
ranks before the old one is taken away.
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
"""Characters; a token is random, never thought up: 20 of base64 are 120 bits."""


@dataclass(frozen=True, slots=True)
class JoinTokens:
    """What a router accepts."""

    accepted: tuple[bytes, ...]

    def accept(self, token: str | None) -> bool:
        """Tell whether it is one of them, in a time that says nothing about them."""
        shown = (token or "").encode("utf-8", "surrogateescape")
        fits = False
        for known in self.accepted:  # all of them, whichever fits
            fits |= hmac.compare_digest(shown, known)
        return fits

    def __repr__(self) -> str:
        """Show how many, never which."""
        return f"JoinTokens({len(self.accepted)})"


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(32)


def read_tokens(path: str) -> tuple[str, ...]:
    """Return the tokens in a file: one a line, without blank lines and those that begin with #.

    Raises:
        SettingsError: there is none, or one is too short or no plain ASCII.
    """
    lines = (line.strip() for line in read_text(path, "join tokens").splitlines())
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise SettingsError(f"{path} holds no join token: write a random one into it")
    for number, token in enumerate(tokens, 1):
        visible = token.isascii() and token.isprintable() and " " not in token
        if len(token) < MIN_LENGTH or not visible:
            raise SettingsError(
                f"token {number} in {path} must be at least {MIN_LENGTH} visible ASCII characters"
            )
    return tokens


def load_join_tokens(path: str) -> JoinTokens:
    """Return what a router accepts, from its file.

    Raises:
        SettingsError: as ``read_tokens``.
    """
    return JoinTokens(tuple(token.encode() for token in read_tokens(path)))


def join_metadata(path: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata with which a rank joins: its token, read now.

    Raises:
        SettingsError: as ``read_tokens``.
    """
    if path is None:
        return ()
    return ((AUTHORIZATION, f"Bearer {read_tokens(path)[0]}"),)


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """Return the token of an ``authorization: Bearer`` header, or none."""
    value = headers.get(AUTHORIZATION, "")
    if value[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return value[len(_SCHEME) :].strip() or None
