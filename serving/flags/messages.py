"""One-line errors about command-line flags: the flag, its value, and the accepted values."""

import difflib
from collections.abc import Collection

from serving.errors import InvalidRequest

_MAX_SHOWN = 80
"""Maximum length of a value in an error, characters."""
_SIMILARITY = 0.7
"""Minimum ``difflib`` ratio of a suggested flag."""
_SECRET_FLAGS = {"--api-key", "--token"}
"""Flags whose values are never shown in errors."""


class BadValue(ValueError):
    """A flag's value is not accepted; the message states the accepted values."""


class FlagError(InvalidRequest):
    """The command line is invalid; the command exits with code 2."""

    hint = ""


def refusal(flag: str, text: str, accepted: object) -> str:
    """Return the error message for a value that a flag does not accept.

    Args:
        flag: Name of the flag, for example "--rate".
        text: The value as given.
        accepted: The accepted values: a reader, or the ``BadValue`` that it raised.
    """
    shown = "…" if flag in _SECRET_FLAGS else text
    if len(shown) > _MAX_SHOWN:
        shown = shown[:_MAX_SHOWN] + "…"
    if not shown.isprintable() or not shown.strip():
        shown = repr(shown)
    return f"{flag} {shown}: {accepted}"


def nearest(word: str, known: Collection[str]) -> str | None:
    """Return the known flag that ``word`` most likely means; None if none is similar.

    Flags that start with ``word`` take precedence over similar ones, because abbreviations are the
    most frequent mistake.
    """
    name = word.partition("=")[0]
    longer = sorted(
        (one for one in known if one.startswith(name) and len(name) > len("--")),
        key=lambda one: (len(one), one),
    )
    similar = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_SIMILARITY)
    found = longer or similar
    return found[0] if found else None


def unknown(word: str, known: Collection[str]) -> str:
    """Return the error message for a flag that does not exist, with the nearest known flag."""
    name = word.partition("=")[0]
    near = nearest(name, known)
    return f"unknown flag {name}" + (f"; did you mean {near}?" if near else "")
