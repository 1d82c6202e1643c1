"""Reads YAML from files and flags, with one exception type for all errors.

For malformed values, PyYAML raises other exceptions (``2027-13-01``: ValueError, ``!!timestamp x``:
AttributeError). At a nesting depth of a few thousand brackets, its C loader overflows the stack,
which crashes the process. If a key occurs twice in a map, PyYAML silently uses the last one: a
second ``keys:`` in a key file would replace the first.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 64
"""Maximum nesting depth of lists and maps."""


def _own(loader: Any) -> Any:
    """Return a subclass with copies of the state of PyYAML that other packages can change."""
    resolvers = {first: list(known) for first, known in loader.yaml_implicit_resolvers.items()}
    constructors = dict(loader.yaml_constructors)
    own = {"yaml_implicit_resolvers": resolvers, "yaml_constructors": constructors}
    return type(f"Own{loader.__name__}", (loader,), own)


# If PyYAML was built with libyaml, its C loader is ten times as fast for thousands of keys.
_Loader = _own(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
_TextLoader = _own(getattr(yaml, "CBaseLoader", yaml.BaseLoader))


class NotYaml(ValueError):
    """The text is not valid YAML, or contains a malformed value."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.line = line
        """Line number, starting at 1. None if unknown."""


class RepeatedKey(NotYaml):
    """A map contains the same key twice."""


def read_yaml(text: str, *, scalars_as_text: bool = False) -> Any:
    """Return the value of a YAML document.

    Args:
        text: The document.
        scalars_as_text: Whether to return all scalars as strings, e.g. amounts of money, which must
            not become floats, and times of day, which YAML 1.1 reads as numbers (16:30 is 990).

    Raises:
        NotYaml: The text is not valid YAML, contains a malformed value, or nests too deeply.
        RepeatedKey: A map contains the same key twice.
    """
    try:
        _check(text)
        loader = _TextLoader if scalars_as_text else _Loader
        return yaml.load(text, Loader=loader)  # noqa: S506  a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise NotYaml(reason, None if mark is None else mark.line + 1) from error
    except NotYaml:
        raise
    except Exception as error:
        raise NotYaml(f"malformed value ({error})") from error


@dataclass(slots=True)
class _Collection:
    """A list or map whose end has not been read."""

    is_map: bool
    keys: set[str] = field(default_factory=set)
    at_key: bool = True
    """Whether the next node of a map is a key."""


def _check(text: str) -> None:
    """Check the depth of a document and the keys of its maps.

    Raises:
        NotYaml: The document nests too deeply.
        RepeatedKey: A map contains the same key twice.
    """
    open_: list[_Collection] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            open_.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if open_ and open_[-1].is_map:
            _note_key(open_[-1], event)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_) >= MAX_DEPTH:
                raise NotYaml(f"nested more than {MAX_DEPTH} deep", _line(event))
            open_.append(_Collection(isinstance(event, yaml.MappingStartEvent)))


def _note_key(inside: _Collection, event: yaml.NodeEvent) -> None:
    if inside.at_key and isinstance(event, yaml.ScalarEvent):
        if event.value in inside.keys:
            raise RepeatedKey(f"key {event.value[:64]!r} occurs twice", _line(event))
        inside.keys.add(event.value)
    inside.at_key = not inside.at_key


def _line(event: yaml.Event) -> int | None:
    return None if event.start_mark is None else event.start_mark.line + 1
