"""Copies of what JSON can hold: several times as fast as ``copy.deepcopy``, which dominated."""

from typing import Any


def copied(value: Any) -> Any:
    """Return a copy that shares no dict and no list with ``value``."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value
